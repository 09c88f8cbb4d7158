"""Forecasters that repeat what was: the last window, or the same window of yesterday and of last week."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from foreserve.foresight.workload import Floats, Forecaster, Places, Series, filled


class LastValue:
    """What comes is what came in the last window that is known."""

    learns: ClassVar[bool] = False

    def fit(self, series: Series, steps: int) -> Forecaster:
        return self

    def forecast(self, series: Series, origins: Places, steps: int) -> Floats:
        return filled(series.values)[origins]


class SeasonalNaive:
    """What comes is what came at the same time yesterday; with two weeks of history, the mean of that and of last week.

    Where yesterday is not known it is last week, the day before, or else the last window that is known.
    """

    learns: ClassVar[bool] = False

    def fit(self, series: Series, steps: int) -> Forecaster:
        return self

    def forecast(self, series: Series, origins: Places, steps: int) -> Floats:
        day = series.day
        yesterday, before, week = (
            _back(series.values, origins, steps, days * day) for days in (_days(steps, day), _days(steps, day) + 1, 7)
        )
        found = yesterday
        for other in (week, before, filled(series.values)[origins]):
            found = np.where(np.isfinite(found), found, other)
        twice = np.isfinite(yesterday) & np.isfinite(week) & (origins >= 14 * day)
        return np.where(twice, (yesterday + week) / 2.0, found)


def _days(steps: int, day: int) -> int:
    """The least number of whole days before a window `steps` ahead that has been seen."""
    return -(-steps // day)


def _back(values: Floats, origins: Places, steps: int, windows: int) -> Floats:
    """What came `windows` before the window that is to be foreseen; `nan` where that is not known or yet to come."""
    places = origins + steps - windows
    there = (places >= 0) & (places <= origins)
    return np.where(there, values[np.clip(places, 0, len(values) - 1)], np.nan)
