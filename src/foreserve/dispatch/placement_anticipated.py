"""Where picked work runs, by what is foreseen of each replica were it to run there: when its first token would come.

After PreServe (arXiv 2504.03702), whose router adds present to anticipated load. Seconds stand in place of its weights
where something measures them: how long each replica takes to read a token of a prompt is learned by its fleet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from foreserve.core import Ramp, Work
from foreserve.dispatch.placement_prefixes import Prefixes, longest
from foreserve.ports import Room

STEPS: Final = 100
"""How far the map is read ahead; the paper's l."""

SHARE_S: Final = 3.0
"""Seconds of waiting for a first token that a whole KV cache less is worth: everybody's steps are shorter there."""

FULL: Final = 0.95
FULL_S: Final = 20.0
"""Above this share somebody will be preempted or has to wait: that is worth so many seconds for a whole cache more."""

TOKEN_S: Final = 1e-4
"""Seconds for each token of a prompt, while no replica is known to have read any."""

SLOW: Final = 1.5
"""A replica whose steps take so many times as long as is usual is not well, whatever its load."""

SILENT_S: Final = 3.0
"""A replica that has work and has said nothing for longer may hang: each second more counts as one of waiting."""

NEAR: Final = 4
"""Of the replicas with the longest known beginning of a prompt, how many are looked at."""


class Anticipated:
    """`anticipated`: the replica where the first token is foreseen soonest and the KV cache stays emptiest.

    For each replica on the short list, in seconds: what is left to read of the prompts that it has been given, and of
    these less what it should have cached; `SHARE_S` times the highest share of its KV cache in the next `STEPS` steps,
    were these begun there now, and `FULL_S` times what of that is above `FULL`; where it tells no such share, that of
    its slots. Slow replicas count as many times as much as they are slow, silent ones their silence. The least wins,
    of equals the one that stands first.

    The short list is made of those with the fewest tokens in flight, prompts that are not read yet counted three times.
    """

    shortlist: ClassVar[int] = 4

    def __init__(self) -> None:
        self._prefixes = Prefixes()
        self._caches: dict[str, float] = {}
        """KV tokens of those that were looked at last, where they tell."""

    def rank(self, room: Room) -> tuple[float, float, str]:
        """See `ports.Shortlisted`. A replica that can hold more may be given more."""
        unread = 0 if room.unread is None else room.unread.tokens
        tokens = (2.0 * unread + room.tokens) / (room.most("kv_tokens") or 1.0)
        return tokens, room.running / max(room.capacity.get("slots", 1.0), 1.0), room.replica

    def near(self, works: Sequence[Work]) -> Sequence[str]:
        """See `ports.Shortlisted`."""
        hits = self._prefixes.hits(longest(works).prefix)
        return [*hits][:NEAR] if hits else ()

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        """See `Placement`."""
        prefix = longest(works).prefix
        if prefix is not None:
            self._caches = _caches(rooms)
        if len(rooms) == 1:
            return rooms[0].replica
        hits = self._prefixes.hits(prefix)
        prompt = sum(_prompt(work) for work in works)
        ramps = [work.ramp for work in works if work.ramp is not None]
        usual_s = _median([room.token_s for room in rooms if room.token_s is not None]) or TOKEN_S
        step_s = _median([room.step_s for room in rooms if room.step_s is not None])
        best, name = math.inf, rooms[0].replica
        for room in rooms:
            token_s = room.token_s or usual_s
            unread = room.unread
            missing = prompt - hits.get(room.replica, 0) if hits else prompt
            seconds = _load_s(room, ramps)
            if missing > 0:
                seconds += missing * token_s
            if unread is not None:
                head_s, gone_s = unread.first * token_s, now - unread.since
                seconds += unread.tokens * token_s - (head_s if gone_s > head_s else max(gone_s, 0.0))
            if room.step_s is not None and room.step_s > SLOW * step_s:
                seconds *= room.step_s / step_s
            if room.running and room.heard is not None and now - room.heard > SILENT_S:
                seconds += now - room.heard
            if seconds < best:
                best, name = seconds, room.replica
        return name

    def chosen(self, works: Sequence[Work], replica: str, now: float) -> int:
        """See `ports.Shortlisted`."""
        return _sent(self._prefixes, works, replica, self._caches)


class PrefixAffinity:
    """`prefix_affinity`: the replica that has most of the prompt's beginning cached, unless it is much busier.

    Much busier is one that runs more than `MOST` times as many requests as the least busy on the list, and `MORE`
    beside; without a known beginning it is the least busy.
    """

    shortlist: ClassVar[int] = 2
    MOST: ClassVar[float] = 1.5
    MORE: ClassVar[int] = 2

    def __init__(self) -> None:
        self._prefixes = Prefixes()
        self._caches: dict[str, float] = {}
        """KV tokens of those that were looked at last, where they tell."""

    def rank(self, room: Room) -> tuple[float, str]:
        """See `ports.Shortlisted`."""
        return room.running / max(room.capacity.get("slots", 1.0), 1.0), room.replica

    def near(self, works: Sequence[Work]) -> Sequence[str]:
        """See `ports.Shortlisted`."""
        return [*self._prefixes.hits(longest(works).prefix)][:NEAR]

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        """See `Placement`."""
        least = min(rooms, key=self.rank)
        self._caches = _caches(rooms)
        hits = self._prefixes.hits(longest(works).prefix)
        most = self.MOST * least.running + self.MORE
        known = [room for room in rooms if room.replica in hits and room.running <= most]
        return min(known, key=lambda room: (-hits[room.replica], self.rank(room))).replica if known else least.replica

    def chosen(self, works: Sequence[Work], replica: str, now: float) -> int:
        """See `ports.Shortlisted`."""
        return _sent(self._prefixes, works, replica, self._caches)


def _caches(rooms: Sequence[Room]) -> dict[str, float]:
    return {room.replica: most for room in rooms if (most := room.most("kv_tokens")) is not None}


def _sent(prefixes: Prefixes, works: Sequence[Work], replica: str, caches: Mapping[str, float]) -> int:
    return sum(prefixes.sent(work, replica, caches.get(replica)) for work in works if work.prefix is not None)


def _load_s(room: Room, ramps: Sequence[Ramp]) -> float:
    """What the load is worth that is foreseen of a replica, in seconds."""
    if room.ahead is None or not ramps:
        return SHARE_S * room.running / max(room.capacity.get("slots", 1.0), 1.0)
    peak = room.ahead.peak(STEPS, ramps)
    if not peak:  # it tells nothing of what these will hold
        peak = room.running / max(room.capacity.get("slots", 1.0), 1.0)
    return SHARE_S * peak + (FULL_S * (peak - FULL) if peak > FULL else 0.0)


def _median(values: list[float]) -> float:
    """The lower of the two in the middle; 0 of nothing."""
    return sorted(values)[(len(values) - 1) // 2] if values else 0.0


def _prompt(work: Work) -> int:
    if work.forecast is not None:
        return work.forecast.input_tokens
    return 0 if work.ramp is None else work.ramp.base
