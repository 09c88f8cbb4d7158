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

    The short list is of those with the emptiest caches, by what they hold now and have to read. Two more are drawn by
    the request's id, so that what stands first in the order of one gateway is not all that it ever looks at.
    """

    shortlist: ClassVar[int] = 2

    def __init__(self) -> None:
        self._prefixes = Prefixes()
        self._caches: dict[str, float] = {}
        """KV tokens of those that were looked at last, where they tell."""

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
        usual_s = _usual([room.token_s for room in rooms]) or TOKEN_S
        step_s = _usual([room.step_s for room in rooms])
        best, name = math.inf, rooms[0].replica
        for room in rooms:
            token_s = room.token_s or usual_s
            unread = room.unread
            missing = prompt - hits.get(room.replica, 0) if hits else prompt
            seconds = _load_s(room, ramps, token_s)
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


def _load_s(room: Room, ramps: Sequence[Ramp], token_s: float) -> float:
    """What the load is worth that is foreseen of a replica, in seconds."""
    most = room.most("kv_tokens")
    if most is None or room.ahead is None:
        return SHARE_S * (room.running / max(room.capacity.get("slots", 1.0), 1.0)) ** POWER
    return LOAD * most * token_s * room.ahead.peak(STEPS, ramps) ** POWER


def _usual(told: list[float | None]) -> float:
    """The lower of the two in the middle of those that are known; 0 where none is."""
    known = sorted(filter(None, told))
    return known[(len(known) - 1) // 2] if known else 0.0


def _prompt(work: Work) -> int:
    if work.forecast is not None:
        return work.forecast.input_tokens
    return 0 if work.ramp is None else work.ramp.base
