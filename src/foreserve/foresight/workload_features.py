"""What a model looks at to foresee a window: what came lately, yesterday and last week, each by its ratio to the last.

All are logarithms of ratios, so that what was learned at one load holds at another.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from foreserve.foresight.workload import Floats, Places, Series, filled

LAGS: Final = (1, 2, 3, 4, 5, 6, 9, 12, 18, 24, 36, 72)
MEANS: Final = (3, 6, 12, 36)

ZERO: Final = 0.02
"""What is added to each amount before its logarithm is taken, as a share of the mean: amounts may be zero."""

MOST_RATIO: Final = 20.0
"""A ratio to the last window is learned and foreseen within this and its inverse."""


class Features:
    """Of one series. Those at an origin are made of what came up to it."""

    def __init__(self, series: Series, zero: float) -> None:
        """`zero` is added to all amounts; above 0."""
        self._zero = zero
        self._day = series.day
        self._first = series.first
        self._x = np.log(filled(series.values) + zero)
        self._sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(self._x))])
        self._begin = int(np.argmax(np.isfinite(self._x))) if len(self._x) else 0

    def at(self, origins: Places, steps: int) -> Floats:
        """A row for each origin. `nan` is what its history is too short for."""
        x0 = self._back(origins, 0)
        day, columns = self._day, [self._back(origins, lag) - x0 for lag in LAGS]
        columns += [self._mean(origins, count, 0) - x0 for count in (*MEANS, day)]
        for season in (day, 2 * day, 7 * day):
            then = self._back(origins, season)
            columns.append(then - x0)
            columns += [self._back(origins, season - ahead, season) - then for ahead in (steps - 1, steps, steps + 1)]
            columns.append(self._mean(origins, 3, season - steps - 1, season) - self._mean(origins, 3, season - 1))
        moves = [self._back(origins, lag) - self._back(origins, lag + 1) for lag in range(6)]
        columns.append(np.std(moves, axis=0))
        index = self._first + origins
        turn = 2.0 * np.pi * (index % day) / day
        columns += [np.sin(turn), np.cos(turn), np.asarray(index // day % 7, dtype=np.float64)]
        return np.column_stack(columns)

    def last(self, origins: Places) -> Floats:
        """The last known amount at each origin."""
        return np.exp(self._back(origins, 0)) - self._zero

    def ratio(self, origins: Places, steps: int) -> Floats:
        """What came `steps` windows after each origin, by its ratio to what had come at it: what is to be learned."""
        places = origins + steps
        there = places < len(self._x)
        later = np.where(there, self._x[np.minimum(places, len(self._x) - 1)], np.nan)
        bound = np.log(MOST_RATIO)
        return np.exp(np.clip(later - self._back(origins, 0), -bound, bound))

    def _back(self, origins: Places, lag: int, most: int = 0) -> Floats:
        """What came `lag` windows before each; `nan` before the first known one, and where it is yet to come.

        `most`: another place that is looked at beside it, without which it says nothing.
        """
        places = origins - lag
        there = (places >= self._begin) & (origins - most >= self._begin) & (places <= origins)
        return np.where(there, self._x[np.clip(places, 0, len(self._x) - 1)], np.nan)

    def _mean(self, origins: Places, count: int, lag: int, most: int = 0) -> Floats:
        """Of the `count` windows that end `lag` before each origin."""
        ends = origins - lag + 1
        there = (ends - count >= self._begin) & (origins - most >= self._begin) & (lag >= 0)
        high = np.clip(ends, 0, len(self._x))
        low = np.clip(ends - count, 0, len(self._x))
        return np.where(there, (self._sums[high] - self._sums[low]) / count, np.nan)
