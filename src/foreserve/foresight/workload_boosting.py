"""Gradient boosting on lags and the calendar (scikit-learn's histograms of gradients; the `predict` extra)."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any, ClassVar, Final

import numpy as np
from threadpoolctl import ThreadpoolController

from foreserve.errors import ConfigError
from foreserve.foresight.workload import Floats, Forecaster, Places, Series
from foreserve.foresight.workload_features import ZERO, Features

LEAST: Final = 60
"""Known windows to learn from, at the least."""

MOST: Final = 4032
"""The newest windows that are learned from: four weeks of ten minutes, nearly three days of one."""

ROUNDS: Final = 80
LEAVES: Final = 4
LEAST_IN_LEAF: Final = 20
RATE: Final = 0.1


class Boosting:
    """Foresees the ratio to the last known window. It learns for the least mean of errors by their share of the truth.

    Raises ConfigError without scikit-learn.
    """

    learns: ClassVar[bool] = True

    def __init__(self) -> None:
        if find_spec("sklearn") is None:
            raise ConfigError("forecaster 'gradient_boosting' needs scikit-learn: pip install 'foreserve[predict]'")
        self._model: Any = None
        self._zero = 1.0
        self._columns: Places = np.empty(0, dtype=np.int64)

    def fit(self, series: Series, steps: int) -> Forecaster:
        from sklearn.ensemble import HistGradientBoostingRegressor

        values = series.values
        mean = float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
        origins = np.flatnonzero(np.isfinite(values[: max(0, len(values) - steps)])).astype(np.int64)
        origins = origins[np.isfinite(values[origins + steps])][-MOST:]
        if len(origins) < LEAST or mean <= 0.0:
            raise ValueError(f"{len(origins)} windows to learn from; it takes {LEAST}, not all of them empty")
        made = Boosting()
        made._zero = ZERO * mean
        features = Features(series, made._zero)
        rows, ratio = features.at(origins, steps), features.ratio(origins, steps)
        made._columns = _telling(rows)
        model = HistGradientBoostingRegressor(
            loss="absolute_error",
            max_iter=ROUNDS,
            learning_rate=RATE,
            max_leaf_nodes=LEAVES,
            min_samples_leaf=LEAST_IN_LEAF,
            l2_regularization=1.0,
            early_stopping=False,
            random_state=0,
        )
        with _threads().limit(limits=1):
            # An error of the ratio r counts 1 / r: together that is the error's share of the truth. Rows are repeated
            # as often, not weighed, for the bins of weighed ones take several times as long as all the rest.
            often = _repeated(1.0 / ratio)
            made._model = model.fit(rows[often][:, made._columns], ratio[often])
        return made

    def forecast(self, series: Series, origins: Places, steps: int) -> Floats:
        if self._model is None or not len(origins):
            return np.full(len(origins), np.nan)
        features = Features(series, self._zero)
        rows = features.at(origins, steps)[:, self._columns]
        with _threads().limit(limits=1):
            ratio: Floats = np.maximum(self._model.predict(rows), 0.0)
        last: Floats = features.last(origins) + self._zero
        return np.maximum(0.0, last * ratio - self._zero)


def _repeated(weights: Floats) -> Places:
    """As many places as there are weights, each as often as its weight asks for, to one more or less."""
    upto = np.cumsum(weights)
    places = np.searchsorted(upto, (np.arange(len(weights)) + 0.5) * upto[-1] / len(weights))
    found: Places = np.minimum(places, len(weights) - 1).astype(np.int64)
    return found


def _telling(rows: Floats) -> Places:
    """Columns that differ among the rows, and are known of a fifth of them."""
    known = np.isfinite(rows)
    low = np.where(known, rows, np.inf).min(axis=0)
    high = np.where(known, rows, -np.inf).max(axis=0)
    return np.flatnonzero((known.sum(axis=0) > 0.2 * len(rows)) & (high > low)).astype(np.int64)


@functools.cache
def _threads() -> ThreadpoolController:
    """To keep it to one thread. Looked for once scikit-learn is there: that takes longer than a forecast."""
    return ThreadpoolController()
