"""Which requests share a batch: those alike in arrival, time left, utility, length and in the settings they allow."""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np

from foreserve.core import Work
from foreserve.elastic.planner import Batch
from foreserve.elastic.profile import Timing

PLANS: Mapping[str, float] = {"plain": 1.0}
"""Of a request that tells of none."""

LATE_WORTH = 0.1
"""What is left of the worth of a request without a deadline that has waited longer than the patience."""


def fitting(settings: Iterable[str], timing: Timing, size: int, length: int, memory: float) -> Sequence[str]:
    """Those that take at most `memory` bytes for so many inputs; all of them where none does."""
    every = tuple(settings)
    if not math.isfinite(memory):
        return every
    return [each for each in every if timing.bytes(each, size, length) <= memory] or every


class Likeness(msgspec.Struct, frozen=True, kw_only=True):
    """How much alike the requests of one batch are.

    They arrive within `wait_s`, and the time that each has differs from the first one's by at most `span` of that.
    Their utilities lie between the same two of `classes`. One without a deadline has `patience_s`. At most `size`.
    """

    wait_s: float
    span: float
    classes: tuple[float, ...]
    patience_s: float
    size: int


class Open:
    """Requests that will run together, and what the planner needs of them."""

    def __init__(self, work: Work, length: int, has_s: float, kind: int) -> None:
        self.works: dict[str, Work] = {work.id: work}
        self.first = work.arrival
        self.length = length
        self.has_s = has_s
        self.kind = kind
        self.plans = tuple((work.plans or PLANS).keys())
        self._planned: tuple[float, int, Batch] | None = None

    def common(self, work: Work) -> tuple[str, ...]:
        """The settings that all of them allow, with this one."""
        own = work.plans or PLANS
        return self.plans if own.keys() == set(self.plans) else tuple(each for each in self.plans if each in own)

    def join(self, work: Work) -> None:
        """One more."""
        self.plans = self.common(work)
        self.works[work.id] = work
        self._planned = None

    def drop(self, request_id: str) -> bool:
        """One less, if it was there."""
        self._planned = None
        return self.works.pop(request_id, None) is not None

    def without(self, taken: Collection[str]) -> Open | None:
        """As it would be without these, or `None` where nothing would be left."""
        left = [work for work in self.works.values() if work.id not in taken]
        if len(left) == len(self.works):
            return self
        if not left:
            return None
        made = Open(left[0], self.length, self.has_s, self.kind)
        made.works = {work.id: work for work in left}
        made.plans = self.plans
        return made

    def planned(self, timing: Timing, due: Mapping[str, float], memory: float) -> Batch:
        """As the planner sees it. `due` has when each should be done."""
        guard, size = timing.guard, len(self.works)
        if self._planned is None or self._planned[1] != size:
            self._planned = (guard, size, self._made(timing, due, memory))
        elif self._planned[0] != guard:
            self._planned = (guard, size, self._planned[2].stretched(guard / self._planned[0]))
        return self._planned[2]

    def _made(self, timing: Timing, due: Mapping[str, float], memory: float) -> Batch:
        size = len(self.works)
        seconds = [timing.seconds(each, size, self.length) for each in self.plans]
        works = self.works.values()
        allowed = [work.plans or PLANS for work in works]
        if all(each == allowed[0] for each in allowed):  # of one task, as is usual
            worth = np.multiply.outer([allowed[0][each] for each in self.plans], [work.utility for work in works])
        else:
            worth = np.array(
                [[w.utility * plans[each] for w, plans in zip(works, allowed, strict=True)] for each in self.plans]
            )
        fits = fitting(self.plans, timing, size, self.length, memory)
        for at, each in enumerate(self.plans):
            if each not in fits:
                seconds[at], worth[at] = math.inf, 0.0  # no worth either: what has no deadline is never too late
        late = [0.0 if work.deadline is not None else LATE_WORTH for work in works]
        return Batch([due[work.id] for work in works], seconds, worth, late)


class Forming:
    """The open batches, in the order in which they were begun."""

    def __init__(self, likeness: Likeness, timing: Timing) -> None:
        self.timing = timing
        self.due: dict[str, float] = {}
        """When each should be done, in loop seconds: its deadline, or until when it has patience."""
        self._like = likeness
        self._open: dict[int, Open] = {}
        self._of: dict[str, int] = {}
        self._made = 0

    def __iter__(self) -> Iterator[Open]:
        return iter(self._open.values())

    def __len__(self) -> int:
        return len(self._of)

    def add(self, work: Work) -> int:
        """Into the newest open batch that it is like, else into one of its own. Returns the length it counts as."""
        like = self._like
        has_s = like.patience_s if work.deadline is None else max(0.0, work.deadline - work.arrival)
        self.due[work.id] = work.arrival + has_s
        length = self.timing.bucket(int(work.cost.get("tokens", 1.0)))
        kind = bisect.bisect_right(like.classes, work.utility)
        for number in reversed(self._open):
            batch = self._open[number]
            if work.arrival - batch.first > like.wait_s and len(self._open) > 1:
                break  # those before it are older still
            if self._alike(batch, work, length, has_s, kind):
                batch.join(work)
                self._of[work.id] = number
                return length
        self._made += 1
        self._open[self._made] = Open(work, length, has_s, kind)
        self._of[work.id] = self._made
        return length

    def due_of(self, work: Work) -> float:
        """When it should be done, also once it waits no more."""
        return work.deadline if work.deadline is not None else work.arrival + self._like.patience_s

    def _alike(self, batch: Open, work: Work, length: int, has_s: float, kind: int) -> bool:
        if len(batch.works) >= self._like.size or work.arrival - batch.first > self._like.wait_s:
            return False
        if batch.length != length or batch.kind != kind or abs(has_s - batch.has_s) > self._like.span * batch.has_s:
            return False
        # Who allows little must not take away what the others allow, nor the best of it.
        common = batch.common(work)
        if 2 * len(common) < max(len(batch.plans), len(work.plans or PLANS)):
            return False
        return all(_keeps(each, common) for each in (next(iter(batch.works.values())), work))

    def drop(self, request_id: str) -> None:
        """It waits no more. Unknown ids are ignored."""
        self.due.pop(request_id, None)
        number = self._of.pop(request_id, None)
        if number is not None:
            batch = self._open[number]
            batch.drop(request_id)
            if not batch.works:
                del self._open[number]

    def take(self, batch: Open, most: int) -> Sequence[Work]:
        """The first `most` of it by when they are due; they leave."""
        works = sorted(batch.works.values(), key=lambda work: self.due[work.id])[:most]
        for work in works:
            self.drop(work.id)
        return works


def _keeps(work: Work, settings: Sequence[str]) -> bool:
    """Whether these are worth as much to it as all that it allows."""
    plans = work.plans or PLANS
    return max(plans.values()) == max((plans[each] for each in settings), default=-math.inf)
