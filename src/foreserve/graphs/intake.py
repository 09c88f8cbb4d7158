"""Updates on their way to the writer: those that wait, those of the batch that is applied, and who hears of each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from foreserve.errors import ForeserveError
from foreserve.graphs.writer import Receipt, Submitted


class Waiting:
    """An update on its way: what it asks, when it came, and who waits."""

    def __init__(self, submitted: Submitted, at: float) -> None:
        self.submitted = submitted
        self.at = at
        self.done: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()

    @property
    def changes(self) -> int:
        return len(self.submitted.changes)


class Intake:
    """Updates in the order in which they came. A batch is closed at `batch_changes`, or when its oldest update has
    waited `batch_wait_s`; while one is applied the next one gathers."""

    def __init__(self, batch_changes: int, batch_wait_s: float) -> None:
        self.news = asyncio.Event()
        """Set while something waits."""
        self._batch_changes = batch_changes
        self._batch_wait_s = batch_wait_s
        self._waiting: deque[Waiting] = deque()
        self._applying: list[Waiting] = []

    def __len__(self) -> int:
        """How many updates are not visible yet."""
        return len(self._waiting) + len(self._applying)

    @property
    def waiting(self) -> int:
        """How many are in no batch yet."""
        return len(self._waiting)

    @property
    def oldest(self) -> float | None:
        """When the oldest came that is not visible yet."""
        first = self._applying[0] if self._applying else self._waiting[0] if self._waiting else None
        return None if first is None else first.at

    def add(self, submitted: Submitted, at: float) -> Waiting:
        """One more, which came at `at`."""
        waiting = Waiting(submitted, at)
        self._waiting.append(waiting)
        self.news.set()
        return waiting

    def wait_s(self, now: float) -> float:
        """For how much longer the next batch may gather; something waits."""
        if sum(each.changes for each in self._waiting) >= self._batch_changes:
            return 0.0
        return max(0.0, self._waiting[0].at + self._batch_wait_s - now)

    def take(self) -> list[Submitted]:
        """The next batch: as many as it may have, at least one."""
        count = 0
        while self._waiting and (not count or count + self._waiting[0].changes <= self._batch_changes):
            waiting = self._waiting.popleft()
            self._applying.append(waiting)
            count += waiting.changes
        if not self._waiting:
            self.news.clear()
        return [each.submitted for each in self._applying]

    def settle(self, results: Sequence[Receipt | ForeserveError]) -> None:
        """What came of the batch that was taken; whoever asked may have gone."""
        for each, result in zip(self._applying, results, strict=True):
            if each.done.cancelled():
                continue
            if isinstance(result, Receipt):
                each.done.set_result(result)
            else:
                each.done.set_exception(result)
                each.done.exception()
        self._applying.clear()
