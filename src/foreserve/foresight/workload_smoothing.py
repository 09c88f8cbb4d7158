"""Exponential smoothing with a damped trend and the season of a day (Holt and Winters; Gardner and McKenzie, 1985).

A few dozen settings of it run side by side, and each forecast is made by the one that has been nearest of late, so that
nothing has to be fitted. Season and trend are ratios: all of it is computed on logarithms.
"""

from __future__ import annotations

import itertools
from typing import ClassVar, Final

import numpy as np

from foreserve.foresight.workload import Floats, Forecaster, Places, Series

LEVEL: Final = (0.1, 0.3, 0.5, 0.8, 1.0)
TREND: Final = (0.0, 0.1)
SEASON: Final = (0.0, 0.1, 0.3)
DAMPING: Final = 0.9
"""A trend goes on ever less: each step nine tenths of the one before."""

FORGET_DAYS: Final = 0.5
"""Errors this long ago count 1/e in the choice among the settings."""

ZERO: Final = 0.02
"""What is added to each amount before its logarithm is taken, as a share of the mean: amounts may be zero."""

ROOM: Final = 4.0
"""A forecast is at most so much times what has been seen of late."""


class Smoothing:
    """Level, damped trend and season of a day.

    It remembers how far it has come, so that each new window costs one step. Amounts that are corrected after it has
    passed them stay as they were; a series that begins elsewhere is gone through anew.
    """

    learns: ClassVar[bool] = False

    def __init__(self) -> None:
        self._run: _Run | None = None

    def fit(self, series: Series, steps: int) -> Forecaster:
        return self

    def forecast(self, series: Series, origins: Places, steps: int) -> Floats:
        if not len(origins):
            return np.empty(0)
        run = self._run
        if run is None or not run.goes_on(series, int(origins[0]), steps):
            known = series.values[: origins[0] + 1]
            run = self._run = _Run(series, steps, float(np.nanmean(known)) if np.isfinite(known).any() else 0.0)
        found = np.empty(len(origins))
        for place, origin in enumerate(origins):
            run.up_to(series, int(origin))
            found[place] = run.ahead()
        return found


class _Run:
    """All settings side by side, as they are after the window `at`."""

    def __init__(self, series: Series, steps: int, mean: float) -> None:
        grid = np.array(list(itertools.product(LEVEL, TREND, SEASON)))
        self._alpha, self._beta, self._gamma = grid.T
        self._steps = steps
        self._window_s = series.window_s
        self._day = series.day
        self._zero = ZERO * mean
        self._at = series.first - 1
        self._level = np.full(len(grid), np.nan)
        self._slope = np.zeros(len(grid))
        self._season = np.zeros((self._day, len(grid)))
        self._error = np.zeros(len(grid))
        self._made = np.full((steps, len(grid)), np.nan)
        """What was foreseen for the window at index n, at n modulo `steps`."""
        self._forget = 1.0 / max(12.0, FORGET_DAYS * self._day)
        self._damped = float(np.sum(DAMPING ** np.arange(1, steps + 1)))
        self._most = 0.0
        self._seen = False

    def goes_on(self, series: Series, origin: int, steps: int) -> bool:
        """Whether this is a run through that series which has not passed `origin` yet."""
        same = self._steps == steps and self._window_s == series.window_s
        return same and series.first - 1 <= self._at <= series.first + origin and self._zero > 0.0

    def up_to(self, series: Series, origin: int) -> None:
        """Take in all windows up to `origin`."""
        for place in range(self._at + 1 - series.first, origin + 1):
            self._take(series.first + place, float(series.values[place]))

    def _take(self, index: int, amount: float) -> None:
        self._at = index
        season = self._season[index % self._day]
        self._seen = self._seen or bool(np.isfinite(amount))
        if np.isfinite(amount) and (amount > 0.0 or self._zero > 0.0):
            if self._zero == 0.0:
                self._zero = ZERO * amount
            self._most = max(amount, self._most * (1.0 - self._forget))
            self._learn(float(np.log(amount + self._zero)), season, index % self._steps)
        else:
            self._level = self._level + DAMPING * self._slope
            self._slope = DAMPING * self._slope
        target = self._season[(index + self._steps) % self._day]
        self._made[index % self._steps] = self._level + self._damped * self._slope + target

    def _learn(self, x: float, season: Floats, ring: int) -> None:
        if not np.isfinite(self._level[0]):
            self._level[:] = x
            return
        made = self._made[ring]
        if np.isfinite(made[0]):
            self._error += self._forget * (np.abs(x - made) - self._error)
        before = self._level + DAMPING * self._slope
        level = before + self._alpha * (x - season - before)
        self._slope = DAMPING * self._slope + self._beta * (level - before)
        season += self._gamma * (x - level - season)
        self._level = level

    def ahead(self) -> float:
        """The amount `steps` after the window `at`, by the setting that is nearest of late."""
        if not np.isfinite(self._level[0]):
            return 0.0 if self._seen else float("nan")  # nothing has ever come
        best = int(np.argmin(self._error))
        x = float(self._made[self._at % self._steps][best])
        return min(max(0.0, float(np.exp(min(x, 700.0))) - self._zero), ROOM * self._most)
