"""How long does a batch of so many calls run? Learned by size alone, for work of which nothing else is known."""

from __future__ import annotations

import bisect

WEIGHT = 0.2
"""Of the newest batch, in the moving mean of its size."""

MOST_SIZES = 512
"""Sizes that are remembered; of more, the ones seen last."""

LEAST_SAVING = 0.05
"""Of the time that a call takes alone: who joins a batch must save as much, or it is taken to save nothing."""


class _Mean:
    """Exponentially weighted mean and mean absolute deviation of one size."""

    def __init__(self, first: float) -> None:
        self.value = first
        self.deviation = 0.0

    def take(self, sample: float) -> None:
        off = sample - self.value
        self.value += WEIGHT * off
        self.deviation += WEIGHT * (abs(off) - self.deviation)


class BatchSeconds:
    """Seconds from a batch's start to its end. Deterministic: the same calls give the same estimates.

    What lies between two sizes that were seen is on the line between them. A larger batch than any is taken to need as
    much for each call as the largest, a smaller one as long as the smallest: neither is told to be quicker than it is,
    as long as a batch's time is a fixed part and a part for each call.
    """

    def __init__(self) -> None:
        self._means: dict[int, _Mean] = {}
        self._sizes: list[int] = []

    def learn(self, size: int, seconds: float) -> None:
        """A batch of `size` took `seconds`."""
        known = self._means.pop(size, None)
        if known is None:
            bisect.insort(self._sizes, size)
            known = _Mean(seconds)
        else:
            known.take(seconds)
        self._means[size] = known
        if len(self._means) > MOST_SIZES:
            oldest = next(iter(self._means))
            del self._means[oldest]
            self._sizes.remove(oldest)

    def estimate(self, size: int) -> float | None:
        """Seconds of a batch of `size`; `None` while none has been seen."""
        return self._at(size, deviations=0.0)

    def most(self, size: int) -> float | None:
        """Seconds that hardly any batch of `size` exceeds."""
        return self._at(size, deviations=2.0)

    def least(self, size: int) -> float | None:
        """Seconds that hardly any batch of `size` falls below."""
        found = self._at(size, deviations=-2.0)
        return None if found is None else max(0.0, found)

    def saves(self, size: int) -> bool:
        """Whether one more in a batch of `size` takes less than it would alone, as far as is known."""
        alone, together, before = (self._means.get(each) for each in (1, size + 1, size))
        if alone is None or together is None or before is None:
            return True
        return together.value < before.value + (1.0 - LEAST_SAVING) * alone.value

    def _at(self, size: int, deviations: float) -> float | None:
        if not self._sizes:
            return None
        at = bisect.bisect_left(self._sizes, size)
        if at == len(self._sizes):
            largest = self._sizes[-1]
            return self._told(largest, deviations) * size / largest
        above = self._sizes[at]
        if above == size or at == 0:
            return self._told(above, deviations)
        below = self._sizes[at - 1]
        share = (size - below) / (above - below)
        return (1.0 - share) * self._told(below, deviations) + share * self._told(above, deviations)

    def _told(self, size: int, deviations: float) -> float:
        mean = self._means[size]
        return mean.value + deviations * mean.deviation
