"""Waiting work by its expected time, so that the best response ratio is found without looking at all of it.

Work of nearly the same weight (expected seconds over utility, in steps of `STEP`) shares a bucket, oldest first. Among
equals in weight the oldest has the best ratio at any time, so that only the heads of the buckets are compared: a few
hundred at most, whatever waits, and all in a few operations on arrays.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from foreserve.core import Work

STEP = 0.05
"""Of the logarithm of a weight: what is picked has at least 1 / (1 + `STEP`) of the best ratio, or very nearly."""

LEAST_S, MOST_S = 1e-3, 1e5
"""Expected seconds and weights are taken to lie in between, which bounds the number of buckets."""

Scores = NDArray[np.float64]


class Waiting:
    """One waiting request, as its order needs it. `weight` is its expected `seconds` over its utility."""

    __slots__ = (
        "account",
        "bucket",
        "late_at",
        "order",
        "passed",
        "seconds",
        "standing",
        "unsure_at",
        "weight",
        "work",
    )

    def __init__(self, work: Work, account: str, seconds: float, order: int) -> None:
        self.work = work
        self.account = account
        self.seconds = min(max(seconds, LEAST_S), MOST_S)
        self.weight = min(max(self.seconds / max(work.utility, 1 / MOST_S), LEAST_S), MOST_S)
        self.order = order
        self.unsure_at = math.inf
        self.late_at = math.inf
        self.standing = 0
        self.passed = 0
        self.bucket: Bucket | None = None


class Bucket:
    """Those of one weight in a heap by arrival. Who has left stays in the heap until it comes to the top."""

    __slots__ = ("heap", "live", "owner", "row")

    def __init__(self, owner: Buckets, row: int) -> None:
        self.owner = owner
        self.row = row
        self.heap: list[tuple[float, int, Waiting]] = []
        self.live = 0

    def head(self) -> Waiting | None:
        """The oldest; forgets those before it that have left."""
        heap = self.heap
        while heap and heap[0][2].bucket is not self:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def in_order(self) -> Iterator[Waiting]:
        """All that are here, oldest first; nothing may come or leave meanwhile. The next one costs a few steps."""
        heap = self.heap
        ahead = [(heap[0], 0)] if heap else []
        while ahead:
            entry, at = heapq.heappop(ahead)
            for child in (2 * at + 1, 2 * at + 2):
                if child < len(heap):
                    heapq.heappush(ahead, (heap[child], child))
            if entry[2].bucket is self:
                yield entry[2]

    def tidy(self) -> None:
        """Keep no more of those that have left than of those that are here."""
        if len(self.heap) > 2 * self.live + 16:
            self.heap = [entry for entry in self.heap if entry[2].bucket is self]
            heapq.heapify(self.heap)


class Buckets:
    """The waiting work of one tenant and standing. Deterministic: of equal scores the bucket that was made first wins.

    With `own` a request's patience is its own expected time, as in the textbook's ratio, and utilities that differ do
    not share a bucket.
    """

    def __init__(self, own: bool) -> None:
        self._own = own
        self._by_key: dict[tuple[int, int], Bucket] = {}
        self._rows: list[Bucket] = []
        self._arrival: Scores = np.full(8, np.inf)
        self._weight: Scores = np.ones(8)
        self._utility: Scores = np.ones(8)
        self._counts: Scores = np.zeros(8)
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def add(self, waiting: Waiting) -> None:
        bucket = self._bucket(waiting)
        waiting.bucket = bucket
        heapq.heappush(bucket.heap, (waiting.work.arrival, waiting.order, waiting))
        bucket.live += 1
        self._counts[bucket.row] += 1
        self._live += 1
        if bucket.heap[0][2] is waiting:
            self._show(bucket)

    def remove(self, waiting: Waiting) -> None:
        """Take out one that is here."""
        bucket = waiting.bucket
        assert bucket is not None
        assert bucket.owner is self
        waiting.bucket = None
        bucket.live -= 1
        self._counts[bucket.row] -= 1
        self._live -= 1
        if bucket.heap[0][2] is waiting:
            self._show(bucket)
        bucket.tidy()

    def scores(self, now: float, patience: float) -> Scores:
        """The ratio of each bucket's head, by row; a fresh array. `patience` seconds are added to each one's wait."""
        count = len(self._rows)
        arrival, weight = self._arrival[:count], self._weight[:count]
        if self._own:
            return self._utility[:count] + (now - arrival) / weight
        return (now + patience - arrival) / weight

    def better(self, score: float, now: float, patience: float) -> float:
        """About how many have at least this ratio; within a bucket arrivals are taken to be even since its head's."""
        rows = len(self._rows)
        weight = self._weight[:rows]
        # Where nobody is, the arrival is infinite and the count 0: no case of its own.
        waited = np.maximum(now - self._arrival[:rows], 1e-9)
        least = (score - self._utility[:rows]) * weight if self._own else score * weight - patience
        share = np.minimum(np.maximum(1.0 - least / waited, 0.0), 1.0)
        return float(self._counts[:rows] @ share)

    def head(self, row: int) -> Waiting:
        """The oldest of a bucket that is not empty."""
        head = self._rows[row].head()
        assert head is not None
        return head

    def score(self, waiting: Waiting, now: float, patience: float) -> float:
        """The ratio of one, as in `scores`."""
        wait = now - waiting.work.arrival
        return (
            waiting.seconds / waiting.weight + wait / waiting.weight
            if self._own
            else (wait + patience) / waiting.weight
        )

    def oldest(self) -> Waiting:
        """Who came first; there must be one."""
        return self.head(int(self._arrival[: len(self._rows)].argmin()))

    def _bucket(self, waiting: Waiting) -> Bucket:
        key = (
            math.floor(math.log(waiting.weight) / STEP),
            math.floor(math.log(waiting.seconds / waiting.weight) / STEP) if self._own else 0,
        )
        bucket = self._by_key.get(key)
        if bucket is None:
            bucket = self._by_key[key] = Bucket(self, len(self._rows))
            self._rows.append(bucket)
            if len(self._rows) > len(self._arrival):
                more = len(self._arrival)
                self._arrival = np.concatenate([self._arrival, np.full(more, np.inf)])
                self._weight = np.concatenate([self._weight, np.ones(more)])
                self._utility = np.concatenate([self._utility, np.ones(more)])
                self._counts = np.concatenate([self._counts, np.zeros(more)])
        return bucket

    def _show(self, bucket: Bucket) -> None:
        """Put a bucket's head where it is compared."""
        head = bucket.head()
        if head is None:
            self._arrival[bucket.row] = np.inf
            return
        self._arrival[bucket.row] = head.work.arrival
        self._weight[bucket.row] = head.weight
        self._utility[bucket.row] = head.seconds / head.weight
