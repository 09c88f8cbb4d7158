"""`earliest_root`: the order for services that pipelines ask: the oldest request first, and of it the deepest stage.

What a request has left to do ends it sooner than what another begins, so requests end one after the other in place of
all late. After ALTO (arXiv 2403.04311), whose engines serve the earliest request and the deepest stage first.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from foreserve.core import Outcome, Work
from foreserve.errors import ConfigError
from foreserve.ports import Pick, Room, Wait


class EarliestRoot:
    """By what each request's slack allows: the one that is due first goes first, of one request the deepest stage.

    A request is due at its deadline; one without is due `patience_s` after its arrival, so that those with and without
    stand in one line. Equals go by arrival. Nobody overtakes who fits no room. Raises ConfigError for a patience below
    0.
    """

    def __init__(self, patience_s: float = 60.0) -> None:
        if patience_s < 0:
            raise ConfigError(f"policy earliest_root: `patience_s` is {patience_s}; it must be at least 0")
        self._patience_s = patience_s
        self._heap: list[tuple[float, int, float, int, str]] = []
        self._waiting: dict[str, tuple[int, Work]] = {}
        self._order = 0

    def add(self, work: Work, now: float) -> None:
        """See `BatchPolicy`."""
        root = work.arrival if work.root_arrival is None else work.root_arrival
        # The same for all stages of a request, so that among them depth decides.
        due = root + self._patience_s if work.deadline is None else work.deadline
        self._order += 1
        self._waiting[work.id] = (self._order, work)
        heapq.heappush(self._heap, (due, -work.depth, work.arrival, self._order, work.id))

    def remove(self, request_id: str) -> None:
        """See `BatchPolicy`."""
        self._waiting.pop(request_id, None)
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._waiting):
            self._heap = [entry for entry in self._heap if self._is_there(entry)]
            heapq.heapify(self._heap)

    def _is_there(self, entry: tuple[float, int, float, int, str]) -> bool:
        waiting = self._waiting.get(entry[4])
        return waiting is not None and waiting[0] == entry[3]

    def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
        """See `BatchPolicy`."""
        while self._heap and not self._is_there(self._heap[0]):
            heapq.heappop(self._heap)
        if not self._heap:
            return None
        due, depth, _, _, request_id = self._heap[0]
        work = self._waiting[request_id][1]
        if not any(room.takes([work]) for room in rooms):
            return None
        heapq.heappop(self._heap)
        waiting = len(self._waiting)
        del self._waiting[request_id]
        why = f"due in {due - now:.1f} s, {-depth} steps deep; first of {waiting}"
        return Pick(ids=(request_id,), why=why)

    def settled(self, outcome: Outcome) -> None:
        """See `BatchPolicy`. It learns nothing."""
