"""Trains a model from stored samples: a pure function.

Meant to run away from whatever serves: seconds of one core. The same samples and seed give the same model on the same
machine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.random import Generator, default_rng  # noqa: TID251 - the one place where a seed becomes a generator
from numpy.typing import NDArray

from foreserve.foresight import length_network as network
from foreserve.foresight.length_distribution import EDGES, LOG_EDGES, Floats, level_of, means
from foreserve.foresight.length_features import MEANING, FeatureSet
from foreserve.foresight.length_inputs import Inputs, Vocabulary, inputs, log_inputs
from foreserve.foresight.length_model import CALIBRATION, About, Model
from foreserve.foresight.length_network import Bins, Targets, Weights
from foreserve.foresight.length_verdict import Sample

log = logging.getLogger(__name__)

LEAST_SAMPLES: Final = 100
"""Fewer teach nothing that the histograms do not know."""

HELD_OUT: Final = 0.15
MOST_HELD_OUT: Final = 2000


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How a network is trained. The defaults were chosen on held-out prompts of four data sets."""

    hidden: int = 64
    epochs: int = 30
    patience: int = 3
    batch: int = 128
    rate: float = 2e-3
    decay: float = 1e-2
    drop_words: float = 0.3
    drop_hidden: float = 0.4


NORMAL: Final = Effort()


def train(
    samples: Sequence[Sample], *, seed: int = 0, features: FeatureSet = "usin", warm: Model | None = None,
    effort: Effort = NORMAL,
) -> Model:  # fmt: skip
    """A model of these samples, given in the order in which they ended; the newest part decides when to stop.

    Of the full tier where all have meanings, of the fast one otherwise. `warm`: begin where that model ended, if it is
    of the same kind. Raises ValueError for fewer than `LEAST_SAMPLES`.
    """
    if len(samples) < LEAST_SAMPLES:
        raise ValueError(f"{len(samples)} samples; a model wants at least {LEAST_SAMPLES}")
    rng = default_rng(seed)
    full = all(sample.features.meaning is not None for sample in samples)
    held = min(MOST_HELD_OUT, int(len(samples) * HELD_OUT))
    old, new = samples[:-held], samples[-held:]
    if warm is not None and (warm.about.features, warm.full) == (features, full):
        vocabulary, bins, weights = warm.vocabulary, warm.bins, {name: w.copy() for name, w in warm.weights.items()}
    else:
        vocabulary = Vocabulary.of([sample.features for sample in old], features)
        bins, bias = _bins(old, rng)
        rows = vocabulary.size
        weights = network.initial(rng, rows, 2 * MEANING * full, effort.hidden, bias)
    fitting = _Fitting(bins, weights, effort, rng)
    loss = fitting.fit(_told(old, vocabulary, features, full), old, _told(new, vocabulary, features, full), new)
    about = About(features=features, full=full, samples=len(samples), loss=loss, mean_scale=1.0)
    return _calibrated(Model(about, vocabulary, bins, fitting.best, np.linspace(0, 1, CALIBRATION)), new, rng)


def _told(samples: Sequence[Sample], vocabulary: Vocabulary, features: FeatureSet, full: bool) -> Inputs:
    told = inputs([sample.features for sample in samples], vocabulary, features, full=full)
    return told.merged(vocabulary.size)


def _log_tokens(samples: Sequence[Sample], rng: Generator) -> NDArray[np.float64]:
    """Each answer at random within its token's cell, see `length_distribution`; one that was cut at its end."""
    tokens = np.array([max(sample.ended.tokens, 1) for sample in samples], np.float64)
    cut = _cut(samples)
    within = np.where(cut, -0.5, rng.random(len(samples)) - 0.5)
    found: NDArray[np.float64] = np.log(tokens + within)
    return found


def _cut(samples: Sequence[Sample]) -> NDArray[np.bool_]:
    return np.array([sample.ended.censored for sample in samples], np.bool_)


def _targets(bins: Bins, samples: Sequence[Sample], rng: Generator) -> Targets:
    log_input = log_inputs([sample.features for sample in samples])
    return network.targets(bins, _log_tokens(samples, rng), log_input, _cut(samples))


def _bins(samples: Sequence[Sample], rng: Generator) -> tuple[Bins, NDArray[np.float32]]:
    """Bins of about equal frequency, as many as the samples bear, and the logarithms of how frequent they are."""
    at = _log_tokens(samples, rng)
    ratio = at - log_inputs([sample.features for sample in samples])
    count = int(np.clip(len(samples) / 12, 8, 56))
    cells = np.searchsorted(EDGES, np.exp(np.quantile(at, np.linspace(0, 1, count + 1))), side="left")
    top = int(np.searchsorted(EDGES, np.exp(at.max()) * 1.25)) + 1
    ends, heavy = np.unique(cells, return_counts=True)
    # A length that many answers have is a bin alone, and so is what is shorter than all of them.
    begins = np.concatenate([ends[heavy > 1], ends[:1]]) - 1
    inner = np.clip(np.concatenate([ends, begins]), 1, len(EDGES) - 2)
    edges = LOG_EDGES[np.unique(np.concatenate([[0], inner, [min(top, len(EDGES) - 1)]]))]
    count = int(np.clip(len(samples) / 25, 6, 48))
    ratios = np.quantile(ratio, np.linspace(0, 1, count + 1))
    ratios[0] -= 0.5
    ratios[-1] += 0.5
    kept = [ratios[0]]
    for edge in ratios[1:]:
        if edge - kept[-1] >= 0.02:
            kept.append(edge)
    if len(kept) < 2:
        kept.append(kept[-1] + 1.0)
    bins = Bins(edges, np.array(kept))
    seen = [np.histogram(values, edges_)[0] + 0.5 for values, edges_ in ((at, bins.length), (ratio, bins.ratio))]
    return bins, np.concatenate([*(np.log(counts / counts.sum()) for counts in seen), [0.0, 0.0]]).astype(np.float32)


class _Fitting:
    """Adam with decoupled decay on shuffled batches, until the newest part is predicted no better."""

    def __init__(self, bins: Bins, weights: Weights, effort: Effort, rng: Generator) -> None:
        self.best = weights
        self._bins, self._effort, self._rng = bins, effort, rng
        self._weights = {name: array.copy() for name, array in weights.items()}
        self._first = {name: np.zeros_like(array) for name, array in weights.items()}
        self._second = {name: np.zeros_like(array) for name, array in weights.items()}
        self._steps = 0

    def fit(self, told: Inputs, samples: Sequence[Sample], held: Inputs, held_samples: Sequence[Sample]) -> float:
        """The loss on the held-out part, with `best` the weights that have it."""
        held_targets = _targets(self._bins, held_samples, self._rng)
        lowest, since = self._loss(held, held_targets), 0
        for epoch in range(self._effort.epochs):
            wanted = _targets(self._bins, samples, self._rng)
            order = self._rng.permutation(len(told))
            for start in range(0, len(order), self._effort.batch):
                chosen = order[start : start + self._effort.batch]
                self._step(told.take(chosen), wanted.take(chosen))
            found = self._loss(held, held_targets)
            if found < lowest:
                lowest, since = found, 0
                self.best = {name: array.copy() for name, array in self._weights.items()}
            else:
                since += 1
            log.debug("epoch %d: held-out loss %.4f, lowest %.4f", epoch, found, lowest)
            if since >= self._effort.patience:
                break
        return lowest

    def _loss(self, told: Inputs, wanted: Targets) -> float:
        return float(network.loss(network.run(self._weights, self._bins, told), wanted)[0].mean())

    def _step(self, batch: Inputs, wanted: Targets) -> None:
        weights, count = self._weights, len(batch)
        bag = np.zeros((count, len(weights["bag"])), np.float32)
        kept = self._rng.random(len(batch.rows)) >= self._effort.drop_words
        bag[batch.rows[kept], batch.columns[kept]] = batch.values[kept] / (1.0 - self._effort.drop_words)
        before = batch.dense @ weights["dense"] + weights["hidden_bias"] + bag @ weights["bag"]
        if batch.meaning is not None:
            before += batch.meaning @ weights["meaning"]
        alive = (before > 0) & (self._rng.random(before.shape, np.float32) >= self._effort.drop_hidden)
        open_ = alive.astype(np.float32) / np.float32(1.0 - self._effort.drop_hidden)
        activated = before * open_
        _, gradient = network.loss(network.outputs(weights, self._bins, batch.dense, activated), wanted)
        gradient /= np.float32(count)
        back = (gradient @ weights["out"].T) * open_
        gradients = {
            "bag": bag.T @ back,
            "dense": batch.dense.T @ back,
            "hidden_bias": back.sum(axis=0),
            "out": activated.T @ gradient,
            "direct": batch.dense.T @ gradient,
            "out_bias": gradient.sum(axis=0),
        }
        if batch.meaning is not None:
            gradients["meaning"] = batch.meaning.T @ back
        self._adam(gradients)

    def _adam(self, gradients: Weights) -> None:
        self._steps += 1
        rate = self._effort.rate * np.sqrt(1 - 0.999**self._steps) / (1 - 0.9**self._steps)
        for name, gradient in gradients.items():
            first, second, weight = self._first[name], self._second[name], self._weights[name]
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient * gradient - second)
            if name not in ("out_bias", "hidden_bias"):
                weight *= 1.0 - self._effort.rate * self._effort.decay
            weight -= np.float32(rate) * first / (np.sqrt(second) + 1e-8)


def _calibrated(model: Model, samples: Sequence[Sample], rng: Generator) -> Model:
    """Its quantiles and mean put right by what the newest answers were; drawn to what they are where few were seen."""
    told = [sample.features for sample in samples]
    cdf = model.distribution(told)
    levels, cut = level_of(cdf, np.exp(_log_tokens(samples, rng))), _cut(samples)
    even = np.linspace(0, 1, CALIBRATION)
    trust = (~cut).sum() / ((~cut).sum() + 50)
    calibration = np.maximum.accumulate(trust * _share_below(levels, cut, even) + (1 - trust) * even)
    calibration += np.linspace(0, 1e-9, CALIBRATION)  # strictly rising, so that it can be turned round
    # What is expected of a request that may be cut is how long it gets, so that those that were cut count as they are.
    most = np.array([max(one.most, 1) for one in told], np.float64)
    tokens = np.array([sample.ended.tokens for sample in samples], np.float64)
    trust = len(samples) / (len(samples) + 200)
    scale = 1.0 + trust * (np.clip(tokens.mean() / means(cdf, most).mean(), 0.7, 1.4) - 1.0)
    about = msgspec.structs.replace(model.about, mean_scale=float(scale))
    return Model(about, model.vocabulary, model.bins, model.weights, calibration)


def _share_below(levels: Floats, cut: NDArray[np.bool_], even: Floats) -> Floats:
    """The share of answers whose level is below each of `even` (Kaplan and Meier's: those that were cut are above)."""
    order = np.argsort(levels, kind="stable")
    at_risk = len(levels) - np.arange(len(levels))
    surviving = np.cumprod(1.0 - ~cut[order] / at_risk)
    found: Floats = np.concatenate([[0.0], 1.0 - surviving])[np.searchsorted(levels[order], even)]
    last = float(levels[~cut].max()) if (~cut).any() else 0.0
    # Above the highest level that any answer reached nothing is known: on from there as the network has it.
    beyond = even > last
    known = found[~beyond][-1]
    found[beyond] = known + (1.0 - known) * (even[beyond] - last) / max(1.0 - last, 1e-9)
    found[0], found[-1] = 0.0, 1.0
    return found
