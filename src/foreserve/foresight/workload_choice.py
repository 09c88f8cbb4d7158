"""Which forecaster to believe: each is tried on what has been, as it would have been asked then; the nearest serves.

A trial goes on a rolling origin at the horizon that is acted on: every forecast is made of what was known at its origin
alone. One that learns is fitted once, on what came before the first of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from foreserve.foresight.workload import Floats, Forecaster, Places, Series, words

log = logging.getLogger(__name__)

TRIED_DAYS: Final = 3.0
MOST_TRIED: Final = 512
LEAST_TRIED: Final = 8
"""Origins of a trial: those of the last days, as many at the most and at the least."""

BETTER: Final = 0.97
"""Who is to take over must have been off by less than this part of what the one in place was off by."""

SMALL: Final = 0.05
"""Of the mean: what is added to a forecast where an error is told as a part of it: none is a part of nothing."""

UNTRIED: Final = 0.3
"""How far off a forecast is taken to be before any could be tried, either way, at the default level."""


class Chosen(msgspec.Struct, frozen=True):
    """Who foresees one measure, `steps` windows ahead, and how far off each has been (mean error over mean amount).

    `spread` are the sorted errors of the trial, as parts of the forecast and `small`; empty before a trial.
    """

    name: str
    forecaster: Forecaster
    steps: int
    errors: dict[str, float] = {}
    tried: int = 0
    small: float = 0.0
    spread: tuple[float, ...] = ()

    def foresee(self, series: Series, level: float) -> tuple[float, float, float] | None:
        """The amount expected `steps` after the last window, and what it is at least and at most at this level."""
        if not len(series):
            return None
        found = float(self.forecaster.forecast(series, np.array([len(series) - 1]), self.steps)[0])
        if not np.isfinite(found):
            return None
        found = max(0.0, found)
        if self.spread:
            # One more than there were, so that the level is reached on average also where few were tried.
            rank = min(1.0, level * (len(self.spread) + 1) / len(self.spread))
            high, low = np.quantile(self.spread, [rank, 1.0 - rank])
        else:
            high, low = UNTRIED, -UNTRIED
        unit = found + self.small
        return found, max(0.0, min(found, found + float(low) * unit)), max(found, found + float(high) * unit)

    def why(self, window_s: float) -> str:
        """In words, with figures."""
        if not self.errors:
            return f"{words(self.name)}: there is too little history to try it on"
        ahead = "1 window" if self.steps == 1 else f"{self.steps} windows"
        days = self.tried * window_s / 86_400.0
        over = f"{days:.1f} days" if days >= 1.0 else f"{self.tried * window_s / 3_600.0:.1f} h"
        ranked = sorted(self.errors.items(), key=lambda each: (each[0] != self.name, each[1]))
        told = [f"{words(name)} {100 * error:.1f} %" for name, error in ranked[:4]]
        first = (
            f"{words(self.name)}: {100 * self.errors[self.name]:.1f} % mean error {ahead} ahead over the last {over}"
        )
        return ", ".join([first, *told[1:]])


def choose(
    series: Series, candidates: Mapping[str, Forecaster], steps: int, before: str | None = None, fallback: str = ""
) -> Chosen:
    """The one of `candidates` that was nearest, fitted on all of `series`; `before` is the one in place.

    Where there is too little to try them on it is `fallback`, or the first. May take seconds where some learn.
    """
    first = fallback if fallback in candidates else next(iter(candidates))
    origins = _origins(series, steps)
    if len(origins) < LEAST_TRIED:
        return Chosen(first, candidates[first], steps)
    truth = series.values[origins + steps]
    small = SMALL * float(np.mean(truth))
    made = {name: _trial(name, one, series, origins, steps) for name, one in candidates.items()}
    total = float(np.sum(truth))
    # A service at rest: whoever says so is right, and all others are off by as much as they say.
    errors = {
        name: float(np.sum(np.abs(truth - each))) / max(total, 1e-9)
        for name, each in made.items()
        if each is not None and np.isfinite(each).all()
    }
    if not errors:
        return Chosen(first, candidates[first], steps)
    name = min(errors, key=lambda each: (errors[each], each != first))
    if before in errors and errors[name] > BETTER * errors[before]:
        name = before
    forecast = made[name]
    assert forecast is not None
    spread = np.sort((truth - forecast) / (np.maximum(forecast, 0.0) + max(small, 1e-9)))
    fitted = candidates[name]
    if fitted.learns:
        fitted = fitted.fit(series, steps)
    return Chosen(name, fitted, steps, errors, len(origins), small, tuple(float(each) for each in spread))


def _origins(series: Series, steps: int) -> Places:
    """Of a trial, oldest first: with as much before the first of them as there are, and a truth for each."""
    most = min(MOST_TRIED, max(LEAST_TRIED, round(TRIED_DAYS * series.day)), len(series) // 2)
    places = np.arange(max(1, len(series) - steps - most), max(1, len(series) - steps))
    known = np.isfinite(series.values)
    return places[known[places + steps] & (np.cumsum(known)[places] > 0)]


def _trial(name: str, one: Forecaster, series: Series, origins: Places, steps: int) -> Floats | None:
    """What it would have said at each origin; `None` where it has too little to learn from, or fails."""
    try:
        if one.learns:
            one = one.fit(series.before(int(origins[0]) + 1), steps)
        return one.forecast(series, origins, steps)
    except ValueError as error:
        log.debug("%s cannot be tried: %s", name, error)
    except Exception:
        log.exception("forecaster %s failed; it is left out", name)
    return None
