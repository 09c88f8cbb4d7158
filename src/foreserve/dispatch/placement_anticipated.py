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

STEPS: Final = 30
"""How far the map is read ahead: about two seconds of a large model's steps. The paper's 100 serve no better here."""

FULL: Final = 0.97
"""The highest share of a KV cache that a replica should come to. Beyond it engines preempt and compute again."""

OTHERS: Final = 0.5
"""A cache of which others hold less than this is not what overflows: it is the request that is large."""

MOST_WAIT_S: Final = 30.0
"""A replica that holds the overflow gets no more once who comes would wait there longer than this."""

POWER: Final = 4
LOAD: Final = 1.0
"""A cache that is foreseen to be full is worth the time of reading as many tokens as it holds; one that is not, the
fourth power of its share of that: it hardly matters how far from full a replica is, and very much how near."""

SHARE_S: Final = 3.0
"""The same time, in seconds, where a replica does not tell what its cache holds: its slots are then what may be full.
"""

UNREAD: Final = 5.0
"""Tokens in the cache that one of a prompt that is still to be read stands for, in the order of the short list."""

TOKEN_S: Final = 1e-4
"""Seconds for each token of a prompt, while no replica is known to have read any."""

SLOW: Final = 1.5
"""A replica whose steps take so many times as long as is usual is not well, whatever its load."""

SILENT_S: Final = 3.0
"""A replica that has work and has said nothing for longer may hang: each second more counts as one of waiting."""

NEAR: Final = 4
"""Of the replicas with the longest known beginning of a prompt, how many are looked at."""


class Anticipated:
    """`anticipated`: the replica where the first token is foreseen soonest, and where fewest will be short of room.

    For each replica on the short list, in seconds: what is left to read of the prompts that it has been given, and of
    these less what it should have cached; `LOAD` times the reading of as much as its KV cache holds, by the fourth
    power of the highest share of it in the next `STEPS` steps, were these begun there now. Slow replicas count as many
    times as much as they are slow, silent ones their silence. The least wins, of equals the one that stands first.

    Where all would be filled beyond `FULL` the overflow is kept together, on the fullest: engines that are given more
    than they hold preempt, compute again and fall behind, and a fleet that shares the overflow evenly falls behind as
    a whole. It goes to one whose wait for room is at most `MOST_WAIT_S`; where there is none, by seconds as ever.

    The short list is of those with the emptiest caches, by what they hold now and have to read. Two more are drawn by
    the request's id, so that what stands first in the order of one gateway is not all that it ever looks at.
    """

    shortlist: ClassVar[int] = 2
    gathers: ClassVar[bool] = True
    """Whether an overflow is kept together."""

    def __init__(self) -> None:
        self._prefixes = Prefixes()
        self._caches: dict[str, float] = {}
        """KV tokens of those that were looked at last, where they tell."""
        self._overflows = ""
        """Of the replicas that were looked at last, the fullest of those that are too full."""

    def rank(self, room: Room) -> tuple[float, float, str]:
        """See `ports.Shortlisted`. A replica that can hold more may be given more."""
        unread = 0 if room.unread is None else room.unread.tokens
        busy = room.running / max(room.capacity.get("slots", 1.0), 1.0)
        most = room.most("kv_tokens")
        if most is None:
            return 2.0 * unread + room.tokens, busy, room.replica
        now = 0.0 if room.ahead is None else room.ahead.peak(1)
        return now + UNREAD * unread / max(most, 1.0), busy, room.replica

    def near(self, works: Sequence[Work]) -> Sequence[str]:
        """See `ports.Shortlisted`."""
        hits = self._prefixes.hits(longest(works).prefix)
        known = [*hits][:NEAR] if hits else []
        return [*known, self._overflows] if self._overflows else known

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
        usual_s = _usual([room.token_s for room in rooms]) or TOKEN_S
        step_s = _usual([room.step_s for room in rooms])
        all_ill, least, name = True, math.inf, rooms[0].replica
        overflows, fullest = "", FULL
        for room in rooms:
            token_s = room.token_s or usual_s
            peak, seconds = _load(room, ramps, token_s)
            missing = prompt - hits.get(room.replica, 0) if hits else prompt
            if missing > 0:
                seconds += missing * token_s
            if room.unread is not None:
                head_s, gone_s = room.unread.first * token_s, now - room.unread.since
                seconds += room.unread.tokens * token_s - (head_s if gone_s > head_s else max(gone_s, 0.0))
            slow = room.step_s is not None and room.step_s > SLOW * step_s
            if slow and room.step_s is not None:
                seconds *= room.step_s / step_s
            silent_s = now - room.heard if room.running and room.heard is not None else 0.0
            silent = silent_s > SILENT_S
            if silent:
                seconds += silent_s
            ill = silent or peak > FULL
            if (ill, seconds) < (all_ill, least):
                all_ill, least, name = ill, seconds, room.replica
            if self.gathers and peak > fullest and not (slow or silent) and _overflows(room, ramps, peak):
                overflows, fullest = room.replica, peak
        self._overflows = overflows
        return overflows if all_ill and overflows else name

    def chosen(self, works: Sequence[Work], replica: str, now: float) -> int:
        """See `ports.Shortlisted`."""
        return _sent(self._prefixes, works, replica, self._caches)


class AnticipatedEven(Anticipated):
    """`anticipated_even`: as `anticipated`, but what overflows is shared by all replicas.

    More answers are late then, and none is very late: for who is judged by a high percentile, and for who hears too
    little of the replicas to know when one of them would have room again.
    """

    gathers: ClassVar[bool] = False


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


def _load(room: Room, ramps: Sequence[Ramp], token_s: float) -> tuple[float, float]:
    """The highest share of its cache that is foreseen, 0 where it tells none; what its load is worth, in seconds."""
    most = room.most("kv_tokens")
    if most is None or room.ahead is None:
        return 0.0, SHARE_S * (room.running / max(room.capacity.get("slots", 1.0), 1.0)) ** POWER
    peak = room.ahead.peak(STEPS, ramps)
    return peak, LOAD * most * token_s * peak**POWER


def _overflows(room: Room, ramps: Sequence[Ramp], peak: float) -> bool:
    """Whether it is others that fill it, not these alone, and they would not have to wait too long there."""
    most, ahead = room.most("kv_tokens"), room.ahead
    if not most or ahead is None:
        return False
    ours = sum(ramp.base + min(ramp.steps, STEPS) for ramp in ramps) / most
    steps = max((ahead.until(ramp) for ramp in ramps), default=0)
    return peak - ours >= OTHERS and steps * (room.step_s or 0.0) <= MOST_WAIT_S


def _usual(told: list[float | None]) -> float:
    """The lower of the two in the middle of those that are known; 0 where none is."""
    known = sorted(filter(None, told))
    return known[(len(known) - 1) // 2] if known else 0.0


def _prompt(work: Work) -> int:
    if work.forecast is not None:
        return work.forecast.input_tokens
    return 0 if work.ramp is None else work.ramp.base
