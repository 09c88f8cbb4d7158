"""How long will a batch run? Learned from the batches that have ended, by their size and predicted maxima.

K nearest neighbours, as in Magnus (arXiv 2406.04785), on standardised features; until there are enough,
a line in the lengths of answers and prompts.
Deterministic: the same calls give the same estimates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from foreserve.foresight.wma import Shape

Numbers = NDArray[np.float64]

LEAST_S = 1e-3
"""No estimate is below this, so that nothing is divided by zero."""

PRIOR_STEP_S, PRIOR_ROW_TOKEN_S = 0.02, 0.0005
"""What a decoding step and a padded prompt token are taken to cost before anything has been seen. Only their ratio
matters then: estimates are compared with each other."""

KEPT = 512
"""Samples kept of either sort: those that were badly predicted, and a uniform choice of all."""

NEWEST = 16
"""Batches on which a new model is held against the old one."""


class BatchShape(NamedTuple):
    """What a batch's time is predicted from: its rows and the longest prompt and answer, in tokens, as predicted."""

    size: int
    longest: Shape


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that has ended. `actual` beside what was predicted tells a wrong length from a wrong time."""

    batch: BatchShape
    actual: Shape
    seconds: float
    estimated: float


class BatchTime:
    """Seconds from a batch's start to its last answer's end.

    Learns a batch when it was off by more than `gate_s` and `gate_share` of what it took, and a uniform choice of all,
    or what is learned would drift to the outliers. It is fitted anew every `refit_s`, at once while little is known;
    the new model is dropped when it does worse than the old one on the newest batches, none of which it has seen.
    """

    def __init__(self, k: int = 5, *, refit_s: float = 120.0, gate_s: float = 2.0, gate_share: float = 0.2) -> None:
        self.log: deque[Served] = deque(maxlen=KEPT)
        """The newest batches, for people and tests."""
        self._k = k
        self._refit_s = refit_s
        self._gate_s = gate_s
        self._gate_share = gate_share
        self._wrong: deque[Served] = deque(maxlen=KEPT)
        self._uniform: list[Served] = []
        self._seen = 0
        self._every = 1
        self._fitted_at: float | None = None
        self._model = _Model([], k)
        self.fits = 0
        """How often the model was replaced."""

    def estimate(self, batches: Sequence[BatchShape]) -> list[float]:
        """Seconds of each, above 0."""
        return self._model.estimate(batches) if batches else []

    def learn(self, batch: BatchShape, actual: Shape, seconds: float, now: float) -> None:
        """A batch took `seconds`; `now` is when it ended (loop seconds)."""
        served = Served(batch=batch, actual=actual, seconds=seconds, estimated=self.estimate([batch])[0])
        self.log.append(served)
        self._sample(served)
        off = abs(served.estimated - seconds)
        if off > self._gate_s and off > self._gate_share * seconds:
            self._wrong.append(served)
        if self._fitted_at is None or self._seen <= 4 * self._k or now - self._fitted_at >= self._refit_s:
            self._fitted_at = now
            self._refit()

    def _sample(self, served: Served) -> None:
        """Keep every n-th, and of those every second with a doubled n once there are too many."""
        if self._seen % self._every == 0:
            self._uniform.append(served)
        self._seen += 1
        if len(self._uniform) > KEPT:
            self._uniform = self._uniform[::2]
            self._every *= 2

    def _refit(self) -> None:
        kept = list({id(served): served for served in (*self._uniform, *self._wrong)}.values())
        newest = list(self.log)[-NEWEST:]
        if self._seen > 4 * self._k:
            unseen = {id(served) for served in newest}
            tried = _Model([served for served in kept if id(served) not in unseen], self._k)
            if tried.error(newest) > self._model.error(newest):
                return
        self._model = _Model(kept, self._k)
        self.fits += 1


class _Model:
    """One fit, never changed: neighbours where there are at least `k`, else the prior at the pace seen so far."""

    def __init__(self, served: Sequence[Served], k: int) -> None:
        self._k = k
        self._seconds = np.array([one.seconds for one in served])
        features = _features([one.batch for one in served])
        self._mean = features.mean(axis=0) if len(served) else np.zeros(3)
        spread = features.std(axis=0) if len(served) else np.ones(3)
        self._scale = np.where(spread > 0, spread, 1.0)
        self._places = (features - self._mean) / self._scale
        # Too few for a regression: the prior's proportions, at the pace that was seen.
        self._pace = float(np.median(self._seconds / _prior(features))) if len(served) else 1.0

    def estimate(self, batches: Sequence[BatchShape]) -> list[float]:
        features = _features(batches)
        if len(self._seconds) < self._k:
            found = _prior(features) * self._pace
        else:
            places = (features - self._mean) / self._scale
            found = np.concatenate([self._near(places[at : at + 256]) for at in range(0, len(places), 256)])
        return [float(seconds) for seconds in np.maximum(found, LEAST_S)]

    def _near(self, places: Numbers) -> Numbers:
        """The mean of the `k` nearest; equally near ones in the order they were learned."""
        distance = ((places[:, None, :] - self._places[None, :, :]) ** 2).sum(axis=2)
        nearest = np.argsort(distance, axis=1, kind="stable")[:, : self._k]
        return np.asarray(self._seconds[nearest].mean(axis=1))

    def error(self, served: Sequence[Served]) -> float:
        """Mean absolute error in seconds."""
        estimates = self.estimate([one.batch for one in served])
        return float(np.mean([abs(e - one.seconds) for e, one in zip(estimates, served, strict=True)]))


def _features(batches: Sequence[BatchShape]) -> Numbers:
    rows = [(batch.size, batch.longest.input, batch.longest.output) for batch in batches]
    return np.array(rows, dtype=np.float64).reshape(len(rows), 3)


def _prior(features: Numbers) -> Numbers:
    """`b * G + c * size * L`, above 0."""
    size, inputs, outputs = features.T
    return np.asarray(np.maximum(PRIOR_STEP_S * outputs + PRIOR_ROW_TOKEN_S * size * inputs, LEAST_S))
