"""How fast a service is, lately: how long a request takes on a replica, how often one can start."""

from __future__ import annotations

from foreserve.core import Forecast, Outcome, OutcomeKind

WEIGHT = 0.1
"""Of the newest request, in the moving means."""

SAMPLE_S = 0.05
MOST_TAKEN = 64
"""One sample counts for as many starts as it stands for, up to this many."""


class Mean:
    """Exponentially weighted mean and mean absolute deviation."""

    def __init__(self) -> None:
        self.value: float | None = None
        self.deviation = 0.0

    def take(self, sample: float) -> None:
        """Learn from one sample; the first one is taken as it is."""
        if self.value is None:
            self.value = sample
            return
        off = sample - self.value
        self.value += WEIGHT * off
        self.deviation += WEIGHT * (abs(off) - self.deviation)


class Pace:
    """`service` is the seconds from start to end; `interval` those from one start to the next while others wait.

    `error` is the ratio of the time that requests took, queue included, to what was predicted when they came.

    A request that expired while it ran would have taken longer still: it counts where it took longer than the mean,
    or the mean would know only of those that were quick enough.
    """

    def __init__(self) -> None:
        self.service = Mean()
        self.interval = Mean()
        self.error = Mean()
        self._since: float | None = None
        self._starts = 0

    def started(self, count: int, still_waiting: int, now: float) -> None:
        """`count` requests were started in one turn and `still_waiting` were left."""
        if self._since is not None:
            self._starts += count
            elapsed = now - self._since
            # Slots often fall free together: starts within `SAMPLE_S` are one sample, or the last of them, which came
            # after no time at all, would count most.
            if elapsed >= SAMPLE_S:
                for _ in range(min(self._starts, MOST_TAKEN)):
                    self.interval.take(elapsed / self._starts)
                self._since, self._starts = now, 0
        elif still_waiting:
            self._since, self._starts = now, 0
        if not still_waiting:
            # Without a queue the next start tells of arrivals, not of what the replicas can do.
            self._since = None

    def settled(self, outcome: Outcome, predicted_s: float) -> None:
        """Learn from one outcome; `predicted_s` is 0 where nothing could be predicted."""
        if outcome.started is None:
            return
        taken = outcome.ended - outcome.started
        done = outcome.kind is OutcomeKind.DONE
        longer = self.service.value is not None and taken > self.service.value
        if done or (outcome.kind is OutcomeKind.EXPIRED and longer):
            self.service.take(taken)
            if predicted_s > 0:
                self.error.take((outcome.ended - outcome.arrival) / predicted_s)

    def stretch(self) -> float:
        """What covers nearly all of the recent errors; at least 1."""
        return max(1.0, (self.error.value or 1.0) + 2 * self.error.deviation)

    def least_service(self, forecast: Forecast | None = None) -> float:
        """Seconds below which a request is hardly ever done, this one if foreseen; 0 while nothing is known."""
        if forecast is not None and self.service.value is not None:
            return forecast.least_seconds
        return max((self.service.value or 0.0) - 2 * self.service.deviation, 0.0)
