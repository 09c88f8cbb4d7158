"""A policy that knows what is to come: how much of what could be had do plans get that do not know it?"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.elastic_play import Query
from foreserve.elastic.batching import Elastic
from foreserve.elastic.planner import Batch
from foreserve.elastic.profile import Profile

HORIZON = 3.0
"""It looks so many times the longest pass ahead, and at most `MOST` batches."""
MOST = 24


class Clairvoyant(Elastic):
    """Plans for the requests that will come as well, in batches of their kind as they would be formed."""

    def __init__(
        self, profile: Profile, queries: Sequence[Query], plans: dict[str, float], began: float, **words: Any
    ) -> None:
        super().__init__(profile, **words)
        self._queries = queries
        self._at = [began + query.at for query in queries]
        self._plans = plans
        self._window = max(max(row) for grid in profile.seconds.values() for row in grid)

    def _to_come(self, now: float) -> Sequence[Batch]:
        start = bisect.bisect_right(self._at, now)
        stop = bisect.bisect_right(self._at, now + HORIZON * self._window)
        groups: list[tuple[float, float, list[int]]] = []
        latest: dict[float, int] = {}
        for at in range(start, stop):
            query = self._queries[at]
            found = latest.get(query.utility)
            if (
                found is not None
                and self._at[at] - groups[found][0] <= self._window
                and len(groups[found][2]) < self._size
            ):
                groups[found][2].append(at)
                continue
            if len(groups) == MOST:
                break
            latest[query.utility] = len(groups)
            groups.append((self._at[at], query.utility, [at]))
        return [self._batch(members) for _, _, members in groups]

    def _batch(self, members: list[int]) -> Batch:
        settings = [*self._plans]
        due = [self._at[at] + self._queries[at].has_s for at in members]
        seconds = [self.timing.seconds(each, len(members), 1) for each in settings]
        worth = np.array([[self._plans[each] * self._queries[at].utility for at in members] for each in settings])
        return Batch(due, seconds, worth, [0.0] * len(members), earliest=self._at[members[-1]])
