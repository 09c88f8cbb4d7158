"""A distribution in bounded memory: logarithmic bins, each 2 % wide, so that a quantile is off by at most 1 %."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from foreserve.traces.histogram import nearest_rank

RATIO: Final = 1.02
"""How much further each bin reaches. A value stands for its bin's geometric middle: off by at most sqrt(1.02) - 1."""

LEAST: Final = 1e-6
"""What is smaller counts as this."""

MOST: Final = 1e9

_SCALE: Final = 1.0 / math.log(RATIO)
_BASE: Final = math.log(LEAST)


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """A histogram's figures. `curve` has (value, share of all that is at most that), for plots of the whole."""

    n: int
    mean: float
    p50: float
    p90: float
    p99: float
    min: float
    max: float
    curve: list[tuple[float, float]] = []


class Histogram:
    """Counts values above 0 by bin; at most 1,744 bins, whatever is added."""

    __slots__ = ("bins", "max", "min", "n", "sum")

    def __init__(self) -> None:
        self.bins: dict[int, int] = {}
        self.n = 0
        self.sum = 0.0
        self.min = math.inf
        self.max = 0.0

    def add(self, value: float) -> None:
        """Values below `LEAST` (0 too) or above `MOST` are counted there; mean and extremes have them as they are."""
        self.n += 1
        self.sum += value
        if value < self.min:
            self.min = value
        if value > self.max:
            self.max = value
        index = int((math.log(value) - _BASE) * _SCALE) if LEAST < value < MOST else (0 if value <= LEAST else _LAST)
        self.bins[index] = self.bins.get(index, 0) + 1

    def merge(self, other: Histogram) -> None:
        """As if everything had been added here."""
        self.n += other.n
        self.sum += other.sum
        self.min = min(self.min, other.min)
        self.max = max(self.max, other.max)
        for index, count in other.bins.items():
            self.bins[index] = self.bins.get(index, 0) + count

    def quantile(self, share: float) -> float | None:
        """The value of nearest rank, within 1 %; `None` of nothing."""
        if not self.n:
            return None
        rank = nearest_rank(share, self.n)
        seen = 0
        for index in sorted(self.bins):
            seen += self.bins[index]
            if seen >= rank:
                return self._middle(index)
        raise AssertionError("its bins hold as many as were added")

    def _middle(self, index: int) -> float:
        """Never outside of what was added."""
        middle = 0.0 if index == 0 else math.exp(_BASE + (index + 0.5) / _SCALE)
        return min(max(middle, self.min), self.max)

    def distribution(self, *, curve: int = 0) -> Distribution | None:
        """Its figures, with at most about `curve` points of the curve; `None` of nothing."""
        if not self.n:
            return None
        p50, p90, p99 = (self.quantile(share) or 0.0 for share in (0.5, 0.9, 0.99))
        return Distribution(
            n=self.n,
            mean=self.sum / self.n,
            p50=p50,
            p90=p90,
            p99=p99,
            min=self.min,
            max=self.max,
            curve=self._curve(curve) if curve else [],
        )

    def _curve(self, points: int) -> list[tuple[float, float]]:
        """Bins one after the other, those left out that add less than their share of a point."""
        made = [(self.min, 0.0)]
        seen = 0
        indices = sorted(self.bins)
        for index in indices:
            seen += self.bins[index]
            share = seen / self.n
            if share - made[-1][1] >= 1.0 / points or index == indices[-1] or share > 0.99:
                made.append((self._middle(index), share))
        return made


_LAST: Final = int((math.log(MOST) - _BASE) * _SCALE)
