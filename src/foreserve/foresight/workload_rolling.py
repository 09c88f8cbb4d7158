"""A forecaster tried on what has been, from a rolling origin: each forecast made of what had come by then, and kept.

The back-test and what is done live are one and the same: a live forecast is the newest of the back-test.
"""

from __future__ import annotations

import itertools
import logging
from typing import Final

import msgspec
import numpy as np

from foreserve.foresight.workload import Floats, Forecaster, Series

log = logging.getLogger(__name__)

SCORED_DAYS: Final = 3
LEAST_SCORED: Final = 72
MOST_SCORED: Final = 1008
"""How far back forecasts are judged, in days, within bounds in windows."""

FOLDS: Final = 3
"""A forecaster that learns and is new to a long history is judged on its end, learning so many times on the way."""

FIRST: Final = 60
"""Windows after which forecasters learn for the first time."""

DEAR_FIRST: Final = 300
DEAR: Final = 4
"""One whose training is dear learns once there are more windows, and a fourth as often; it is judged by one training
on the way."""

REFIT_LEAST: Final = 36
REFIT_SHARE: Final = 14
REFIT_MOST: Final = 288
"""Windows between two trainings: one in 14 of those known, within bounds."""


def scored(series: Series) -> int:
    """Windows on which forecasts are judged, at the most."""
    return min(MOST_SCORED, max(LEAST_SCORED, SCORED_DAYS * series.day))


def is_dear(forecaster: Forecaster) -> bool:
    """Whether its training takes so much that it is seldom worth it: a forecaster may say `dear = True`."""
    return bool(getattr(forecaster, "dear", False))


class Learned(msgspec.Struct, frozen=True, eq=False):
    """What came of a training at index `at`: the forecaster, and what it would have foreseen before, by index.

    Without a `forecaster` nothing could be learned, `why` in words.
    """

    at: int
    forecaster: Forecaster | None = None
    made: dict[int, float] = {}
    why: str = ""


class Rolling:
    """One forecaster of one measure, `steps` windows ahead.

    `made` has its forecasts by the index of the window that they are of, the newest `scored` of them and those to come.
    """

    def __init__(self, name: str, forecaster: Forecaster, steps: int) -> None:
        self.name = name
        self.steps = steps
        self.made: dict[int, float] = {}
        self._now: Forecaster | None = None if forecaster.learns else forecaster
        self._new = forecaster
        self._dear = is_dear(forecaster)
        self._at: int | None = None
        self._due = DEAR_FIRST if self._dear else FIRST
        """Windows that must be known before it is trained."""
        self._from: int | None = None

    # --- training, where the forecaster learns

    def due(self, series: Series) -> bool:
        """Whether it should be trained now."""
        if not self._new.learns or len(series) < self._due:
            return False
        end = series.first + len(series)
        if self._at is None or end < self._at:
            return True
        after = min(REFIT_MOST, max(REFIT_LEAST, len(series) // REFIT_SHARE))
        return end - self._at >= after * (DEAR if self._dear else 1)

    def learn(self, series: Series) -> Learned:
        """Train of all of `series`; the first time of its earlier parts too. Costly; leaves this as it is."""
        at = series.first + len(series)
        made: dict[int, float] = {}
        try:
            if self._now is None:
                made = self._tried(series)
            return Learned(at, self._new.fit(series, self.steps), made)
        except ValueError as error:
            return Learned(at, why=str(error))
        except Exception as error:  # a user's own may fail in any way
            log.exception("forecaster %s cannot learn; it is tried again later", self.name)
            return Learned(at, why=str(error))

    def _tried(self, series: Series) -> dict[int, float]:
        """What it would have foreseen of late, learning `FOLDS` times."""
        made: dict[int, float] = {}
        begin = max(FIRST, len(series) - scored(series))
        ends = np.linspace(begin, len(series), (1 if self._dear else FOLDS) + 1).astype(int)
        for begin, end in itertools.pairwise(ends):
            if end <= begin:
                continue
            try:
                model = self._new.fit(series.before(int(begin)), self.steps)
            except ValueError:
                continue
            made.update(_forecasts(model, series, int(begin), int(end), self.steps))
        return made

    def take(self, learned: Learned, series: Series) -> None:
        """Go on with what has been learned; `series` is the one that it was learned of."""
        if learned.forecaster is None:
            self._due = len(series) + max(12, len(series) // 5)
            return
        self._now, self._at = learned.forecaster, learned.at
        self.made = {**learned.made, **self.made}
        if self._from is None:
            self._from = learned.at - 1

    # --- forecasts

    def extend(self, series: Series) -> None:
        """Make the forecasts that are still missing, up to the one from the end of `series`."""
        if self._now is None or not len(series):
            return
        end = len(series)
        oldest = series.first + end - scored(series) - self.steps
        if self._from is not None and self._from > series.first + end:  # the clock was set back
            self.made = {index: amount for index, amount in self.made.items() if index < series.first + end}
            self._from = series.first + end - 1
        begin = max(0, (oldest if self._from is None else max(oldest, self._from)) - series.first)
        try:
            self.made.update(_forecasts(self._now, series, begin, end, self.steps))
        except Exception:  # a user's own may fail in any way
            log.exception("forecaster %s cannot tell", self.name)
        self._from = series.first + end
        if len(self.made) > 2 * scored(series):
            self.made = {index: amount for index, amount in self.made.items() if index >= oldest}

    def of(self, indices: range) -> Floats:
        """Its forecasts of these windows, `nan` where there is none."""
        return np.array([self.made.get(index, np.nan) for index in indices])


def _forecasts(forecaster: Forecaster, series: Series, begin: int, end: int, steps: int) -> dict[int, float]:
    """From each origin of `begin` to `end` the forecast, by the index of the window it is of."""
    origins = np.arange(begin, end, dtype=np.int64)
    amounts = forecaster.forecast(series, origins, steps)
    return {
        series.first + int(origin) + steps: float(amount)
        for origin, amount in zip(origins, amounts, strict=True)
        if np.isfinite(amount) and amount >= 0.0
    }
