"""The predicted work that one handle has given to each replica of a Ray Serve deployment, and where more should go.

Everything is booked by the handle's own events, so it is exact for what this handle sent; what other processes send is
not seen. No clock, no I/O and no Ray.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from foreserve.core import EngineLoad, Forecast, Length, Ramp, Work
from foreserve.fleet.occupancy import KV, Occupancy
from foreserve.foresight.length import Asked, Ended
from foreserve.foresight.length_predictor import Predictor
from foreserve.integrations.ray_serve_asked import asked
from foreserve.ports import Placement, Room

MOST_PRICED: Final = 65_536
"""Requests that may be priced and not yet routed; the oldest are forgotten, and priced again."""


class Booked(msgspec.Struct):
    """A request on a replica, given at `at`; it is taken to begin its answer at `begins`."""

    replica: str
    work: Work
    about: Asked
    at: float
    begins: float


class Bookings:
    """Prices requests, ranks replicas for them by `placement`, and keeps what each replica has been given.

    A replica reads a token of a prompt in `token_s` and takes `step_s` a step, one token of each answer; its KV cache
    holds `kv_tokens` (`None`: not known, its slots are then what may be full). Lengths of answers are learned, in
    steps, by how long they took after their prompt was read (`learned`), or are the request's own limit (`limit`),
    which is `most` where it names none. A booking whose end is never told is dropped after `expiry_s`.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        kv_tokens: float | None = None,
        token_s: float = 1e-4,
        step_s: float = 0.03,
        lengths: Literal["learned", "limit"] = "learned",
        most: int = 1024,
        expiry_s: float = 3600.0,
    ) -> None:
        """Raises ValueError for a figure that is not above 0 and for `lengths` that is neither."""
        figures = {"token_s": token_s, "step_s": step_s, "most": most, "expiry_s": expiry_s}
        for name, value in (figures if kv_tokens is None else {**figures, "kv_tokens": kv_tokens}).items():
            if not value > 0:
                raise ValueError(f"`{name}` is {value}; it must be above 0")
        if lengths not in ("learned", "limit"):
            raise ValueError(f"`lengths` is {lengths!r}; valid: learned, limit")
        self._placement = placement
        self._kv_tokens = kv_tokens
        self._token_s = token_s
        self._step_s = step_s
        self._predictor = Predictor() if lengths == "learned" else None
        self._most = most
        self._expiry_s = expiry_s
        self._held: dict[str, Occupancy] = {}
        self._unread: dict[str, deque[str]] = {}
        self._booked: OrderedDict[str, Booked] = OrderedDict()
        self._priced: OrderedDict[str, tuple[Work, Asked]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._booked)

    def held(self, replica: str) -> int:
        """Requests that are booked on a replica."""
        occupancy = self._held.get(replica)
        return 0 if occupancy is None else len(occupancy.held)

    def tokens(self, replica: str) -> int:
        """Of the prompts and foreseen answers that are booked on a replica."""
        occupancy = self._held.get(replica)
        return 0 if occupancy is None else occupancy.tokens

    def priced(self, request_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], now: float) -> Work:
        """What it is foreseen to take; the same until it is routed."""
        known = self._priced.get(request_id)
        if known is None:
            about, prefix = asked(args, kwargs, self._most)
            length = _limit(about) if self._predictor is None else self._predictor.predict([about])[0]
            steps = max(1, min(math.ceil(length.mean), about.most))
            prompt = about.prompt_tokens
            work = Work(
                id=request_id,
                payload=None,
                cost={"slots": 1.0},
                arrival=now,
                forecast=Forecast(
                    input_tokens=prompt,
                    output=length,
                    most_tokens=about.most,
                    seconds=prompt * self._token_s + steps * self._step_s,
                ),
                ramp=Ramp(resource=KV, base=prompt, steps=steps, most=prompt + about.most),
                prefix=prefix,
            )
            known = self._priced[request_id] = work, about
            if len(self._priced) > MOST_PRICED:
                self._priced.popitem(last=False)
        return known[0]

    def order(self, work: Work, replicas: Mapping[str, int], now: float) -> list[str]:
        """All of `replicas` (name: requests that it takes at once), the one that should run it first.

        The first is the placement's choice; the others follow by its rank, or by how many requests they hold.
        """
        self._expire(now)
        rooms = {name: self._room(name, slots, now) for name, slots in replicas.items()}
        if not rooms:
            return []
        rank = getattr(self._placement, "rank", None) or (lambda room: (room.running, room.replica))
        ranked = sorted(rooms.values(), key=rank)
        shown = list(ranked)
        if (count := getattr(self._placement, "shortlist", None)) is not None:
            near = [rooms[name] for name in self._placement.near((work,)) if name in rooms]  # type: ignore[attr-defined]
            shown = [rooms[name] for name in dict.fromkeys(room.replica for room in (*ranked[:count], *near))]
        first = self._placement.place((work,), shown, now)
        return [first, *(room.replica for room in ranked if room.replica != first)]

    # --- what the handle tells

    def routed(self, request_id: str, replica: str, now: float) -> None:
        """It runs there from now on. A request that was booked elsewhere is moved; one that was not priced is not."""
        self._remove(request_id, None)
        known = self._priced.pop(request_id, None)
        if known is None:
            return
        work, about = known
        occupancy = self._occupancy(replica, now)
        chosen = getattr(self._placement, "chosen", None)
        cached = (chosen((work,), replica, now) or 0) if chosen is not None else 0
        unread = self._unread.setdefault(replica, deque())
        before = self._booked[unread[-1]].begins if unread else now
        begins = max(before, now) + max(about.prompt_tokens - cached, 0) * self._token_s
        self._booked[request_id] = Booked(replica, work, about, now, begins)
        unread.append(request_id)
        occupancy.start((work,), now, cached)

    def completed(self, request_id: str, now: float) -> None:
        """It has ended, however. Unknown ids are ignored."""
        self._priced.pop(request_id, None)
        booked = self._remove(request_id, now)
        if booked is None or self._predictor is None or now <= booked.begins:
            return
        steps = max(1, round((now - booked.begins) / self._step_s))
        most = booked.about.most
        self._predictor.learn(booked.about, Ended(tokens=min(steps, most), censored=steps >= most))

    def lost(self, replica: str) -> None:
        """It is gone, and what was booked on it."""
        for request_id in [one for one, booked in self._booked.items() if booked.replica == replica]:
            self._remove(request_id, None)
        self._held.pop(replica, None)
        self._unread.pop(replica, None)

    def only(self, replicas: Collection[str]) -> None:
        """These are all there are."""
        for gone in self._held.keys() - set(replicas):
            self.lost(gone)

    # --- the books

    def _occupancy(self, replica: str, now: float) -> Occupancy:
        occupancy = self._held.get(replica)
        if occupancy is None:
            holds = {} if self._kv_tokens is None else {KV: self._kv_tokens}
            occupancy = self._held[replica] = Occupancy({}, holds)
            occupancy.heard(EngineLoad(last_step_s=self._step_s), now)
        return occupancy

    def _room(self, replica: str, slots: int, now: float) -> Room:
        occupancy = self._occupancy(replica, now)
        unread = self._unread.get(replica, ())
        begun = []
        while unread and self._booked[unread[0]].begins <= now:
            begun.append(unread.popleft())
        if begun:
            occupancy.answered(begun, now)
        _, ahead = occupancy.room(now)
        running = len(occupancy.held)
        return Room(
            replica=replica,
            free={"slots": float(max(slots - running, 0))},
            capacity={"slots": float(max(slots, 1))},
            holds={} if self._kv_tokens is None else {KV: self._kv_tokens},
            running=running,
            ahead=ahead,
            tokens=occupancy.tokens,
            unread=occupancy.unread,
            token_s=self._token_s,
            step_s=self._step_s,
        )

    def _remove(self, request_id: str, now: float | None) -> Booked | None:
        booked = self._booked.pop(request_id, None)
        if booked is not None:
            self._held[booked.replica].end(request_id, now)
            unread = self._unread.get(booked.replica)
            if unread and request_id in unread:
                unread.remove(request_id)
        return booked

    def _expire(self, now: float) -> None:
        while self._booked:
            request_id, booked = next(iter(self._booked.items()))
            if now - booked.at < self._expiry_s:
                return
            self._remove(request_id, None)


def _limit(about: Asked) -> Length:
    most = float(max(about.most, 1))
    return Length(mean=most, p50=most, p80=most, p95=most, source="limit")
