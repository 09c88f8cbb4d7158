"""How long requests take on a replica, lately."""

from __future__ import annotations

from foreserve.core import Outcome, OutcomeKind

WEIGHT = 0.1
"""Of the newest request, in the moving means."""


class Pace:
    """Exponentially weighted mean and mean absolute deviation of the seconds from start to end.

    A request that expired while it ran would have taken longer still: it counts where it took longer than the mean,
    or the mean would know only of those that were quick enough.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        self.deviation = 0.0

    def settled(self, outcome: Outcome) -> None:
        """Learn from one outcome."""
        if outcome.started is None:
            return
        taken = outcome.ended - outcome.started
        if outcome.kind is OutcomeKind.DONE or (
            outcome.kind is OutcomeKind.EXPIRED and self.seconds is not None and taken > self.seconds
        ):
            self._take(taken)

    def _take(self, taken: float) -> None:
        if self.seconds is None:
            self.seconds = taken
            return
        off = taken - self.seconds
        self.seconds += WEIGHT * off
        self.deviation += WEIGHT * (abs(off) - self.deviation)
