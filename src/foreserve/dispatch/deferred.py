"""`deferred`: batches that close by deadline, held open only while one more call still fits and is expected."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import msgspec

from foreserve.core import Outcome, OutcomeKind, Work
from foreserve.dispatch.arrivals import Arrivals
from foreserve.errors import ConfigError
from foreserve.foresight.batch_seconds import BatchSeconds
from foreserve.ports import Pick, Room, Wait

OVERDUE = 2.0
"""Another is not waited for any longer than so many times the expected time until it comes."""


class _Run(msgspec.Struct, eq=False):
    """A batch that was started: how many of it have not ended, and when the last ended that was done."""

    size: int
    at: float
    left: int
    ended: float | None = None


class _Close(msgspec.Struct, frozen=True):
    """When a batch closes, and why then."""

    at: float
    why: str


class Deferred:
    """A batch runs as soon as waiting longer could not make it better, and a replica is free. It closes

    - when it is full: as many as the replica has slots, or `size`;
    - when its earliest deadline, less the time that a batch of one more is expected to take, has come;
    - when the first of it has waited `wait_s`;
    - when no other call is expected before these. How soon one comes is learned by how many are here (`Arrivals`): a
      lone client sends nothing while it waits, so its calls are not held up at all. One that was expected and has not
      come after twice that time is not waited for either;
    - when calls are known to take no less together than one after the other.

    Calls go by their deadline, one without by its arrival and `patience_s`; equals by arrival. So nobody starves: who
    has waited `patience_s` goes before all that come later.

    Who comes back, since its replica was lost or memory ran out, runs alone: what brought a batch down once shall not
    cost others their second attempt. The time of a batch is learned by its size (`BatchSeconds`).
    Raises ConfigError for options out of range.
    """

    def __init__(self, wait_s: float = 0.01, patience_s: float = 5.0, size: int | None = None) -> None:
        for name, value, least in (("wait_s", wait_s, 0), ("patience_s", patience_s, 0), ("size", size, 1)):
            if value is not None and not value >= least:
                raise ConfigError(f"policy deferred: `{name}` is {value}; it must be at least {least}")
        self._wait_s = wait_s
        self._patience_s = patience_s
        self._size = size
        self.seconds = BatchSeconds()
        self._arrivals = Arrivals(wait_s / 2)
        self._waiting: dict[str, tuple[Work, int]] = {}
        self._order: list[tuple[float, float, int, str]] = []
        """A heap of those that wait, by deadline; who was removed stays in it until it comes up."""
        self._back: dict[str, Work] = {}
        self._here: dict[str, _Run | None] = {}
        """All that came and have not ended, with the batch that they run in."""
        self._added = 0

    # --- requests come and go

    def add(self, work: Work, now: float) -> None:
        run = self._here.get(work.id)
        if run is not None:
            run.left -= 1
        if work.id not in self._here:
            self._arrivals.came(now)
        self._here[work.id] = None
        if work.attempt:
            self._back[work.id] = work
            return
        self._added += 1
        due = work.deadline if work.deadline is not None else work.arrival + self._patience_s
        self._waiting[work.id] = (work, self._added)
        heapq.heappush(self._order, (due, work.arrival, self._added, work.id))

    def remove(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)
        self._back.pop(request_id, None)
        if len(self._order) > 2 * len(self._waiting) + 16:
            self._order = [entry for entry in self._order if self._waits(entry)]
            heapq.heapify(self._order)

    def settled(self, outcome: Outcome) -> None:
        """Learn how long its batch took, once the last of it has ended."""
        self.remove(outcome.id)
        if outcome.id not in self._here:
            return
        run = self._here.pop(outcome.id)
        self._arrivals.left(outcome.ended)
        if run is None:
            return
        run.left -= 1
        if outcome.kind is OutcomeKind.DONE:
            run.ended = max(run.ended or 0.0, outcome.ended)
        if not run.left and run.ended is not None:
            self.seconds.learn(run.size, run.ended - run.at)

    # --- which are next, and when

    def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
        for work in self._back.values():
            if any(room.takes([work]) for room in rooms):
                return self._start([work], "alone, since its last attempt came to nothing", now)
        if not self._waiting:
            return None
        room = max(rooms, key=lambda each: each.free.get("slots", 1.0))
        slots = max(1, int(room.free.get("slots", 1.0)))
        works, full = self._first(room, slots if self._size is None else min(slots, self._size))
        if not works:
            return None
        closes = _Close(now, "full") if full else self._closes(works, now)
        if now < closes.at:
            return Wait(until=closes.at)
        return self._start(works, closes.why, now)

    def _first(self, room: Room, most: int) -> tuple[list[Work], bool]:
        """The first in order that the room takes together, at most so many, and whether there is room for no other."""
        entries: list[tuple[float, float, int, str]] = []
        while self._order and len(entries) < most:
            entry = heapq.heappop(self._order)
            if self._waits(entry):
                entries.append(entry)
        for entry in entries:  # they leave the order when they start
            heapq.heappush(self._order, entry)
        works = [self._waiting[entry[3]][0] for entry in entries]
        while works and not room.takes(works):
            works.pop()
        return works, len(works) == most or len(works) < len(entries)

    def _waits(self, entry: tuple[float, float, int, str]) -> bool:
        found = self._waiting.get(entry[3])
        return found is not None and found[1] == entry[2]

    def _closes(self, works: Sequence[Work], now: float) -> _Close:
        """When a batch with room for more closes: the first of the reasons."""
        if not self.seconds.saves(len(works)):
            return _Close(now, "more of them together save no time")
        closes = _Close(min(work.arrival for work in works) + self._wait_s, "its first has waited enough")
        deadline = min((work.deadline for work in works if work.deadline is not None), default=None)
        longer = self.seconds.most(len(works) + 1)
        if deadline is not None and deadline - (longer or 0.0) < closes.at:
            at = deadline - (longer or 0.0)
            closes = _Close(at, f"its earliest deadline leaves no time for a larger one of {longer or 0.0:.3f} s")
        since, gap = self._arrivals.since, self._arrivals.gap()
        if since + gap > closes.at:
            return _Close(now, f"the next is expected in {gap:.3f} s, which is too late for this one")
        if since + OVERDUE * gap < closes.at:
            return _Close(since + OVERDUE * gap, f"the next was expected within {gap:.3f} s and has not come")
        return closes

    def _start(self, works: Sequence[Work], why: str, now: float) -> Pick:
        """They leave the queue."""
        size = len(works)
        expected = self.seconds.estimate(size)
        run = _Run(size, now, size)
        for work in works:
            self._here[work.id] = run
            self.remove(work.id)
        told = "" if expected is None else f", {expected:.3f} s expected"
        oldest = now - min(work.arrival for work in works)
        return Pick(
            ids=tuple(work.id for work in works), why=f"batch of {size}{told}, waited {oldest:.3f} s; closed: {why}"
        )
