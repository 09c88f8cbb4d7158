"""A small network in numpy: from a request's inputs to two distributions of its answer's length and how to mix them.

One expert says how long the answer is, the other how much longer than the input: what rewrites, translates or repairs
its input is sharp in the second, what answers questions in the first. Each is a softmax over bins of a logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from foreserve.foresight.length_inputs import DENSE, Inputs, Single

Weights = dict[str, Single]
NAMES: Final = ("bag", "dense", "meaning", "hidden_bias", "out", "direct", "out_bias")
"""The arrays of a network; `meaning` has no rows in the fast tier."""


class Bins(msgspec.Struct, frozen=True, eq=False):
    """Edges of the experts' bins: log tokens, and log of the ratio of tokens to input tokens."""

    length: NDArray[np.float64]
    ratio: NDArray[np.float64]

    @property
    def sizes(self) -> tuple[int, int]:
        """Bins of the first and of the second."""
        return len(self.length) - 1, len(self.ratio) - 1


class Outputs(msgspec.Struct, frozen=True, eq=False):
    """Probabilities, a row for each request: of the bins of both experts, and of the experts."""

    length: Single
    ratio: Single
    gate: Single


def initial(rng: np.random.Generator, rows: int, meanings: int, hidden: int, bias: Single) -> Weights:  # noqa: TID251
    """Small random weights; the outputs begin at `bias`, the logarithms of the bins' frequencies."""

    def normal(inputs: int, outputs: int, scale: float) -> Single:
        return (rng.standard_normal((inputs, outputs)) * scale).astype(np.float32)

    return {
        "bag": normal(rows, hidden, 0.1),
        "dense": normal(DENSE, hidden, 0.3),
        "meaning": normal(meanings, hidden, 0.2),
        "hidden_bias": np.zeros(hidden, np.float32),
        "out": normal(hidden, len(bias), 0.1),
        "direct": np.zeros((DENSE, len(bias)), np.float32),
        "out_bias": bias.astype(np.float32),
    }


def hidden(weights: Mapping[str, Single], batch: Inputs) -> Single:
    """The hidden layer before its bend, from a sparse bag."""
    found: Single = batch.dense @ weights["dense"] + weights["hidden_bias"]
    if len(batch.rows):
        parts = weights["bag"][batch.columns] * batch.values[:, None]
        firsts = np.flatnonzero(np.concatenate([[True], batch.rows[1:] != batch.rows[:-1]]))
        found[batch.rows[firsts]] += np.add.reduceat(parts, firsts)
    if batch.meaning is not None:
        found += batch.meaning @ weights["meaning"]
    return found


def outputs(weights: Mapping[str, Single], bins: Bins, dense: Single, activated: Single) -> Outputs:
    """From the hidden layer after its bend."""
    logits = activated @ weights["out"] + dense @ weights["direct"] + weights["out_bias"]
    lengths, ratios = bins.sizes
    return Outputs(
        _softmax(logits[:, :lengths]), _softmax(logits[:, lengths : lengths + ratios]), _softmax(logits[:, -2:])
    )


def run(weights: Mapping[str, Single], bins: Bins, batch: Inputs) -> Outputs:
    """The whole network."""
    return outputs(weights, bins, batch.dense, np.maximum(hidden(weights, batch), 0.0))


def _softmax(logits: Single) -> Single:
    found: Single = np.exp(logits - logits.max(axis=1, keepdims=True))
    found /= found.sum(axis=1, keepdims=True)
    return found


class Targets(msgspec.Struct, frozen=True, eq=False):
    """What the answers were, as the experts see it: how much of each bin fits the answer, and over the bin's width.

    For an answer that ended one bin fits, and its density counts. For one that was cut all of the bins above do, and
    what counts is their probability.
    """

    length: Single
    ratio: Single

    def take(self, chosen: NDArray[np.int64]) -> Targets:
        """Those answers, in this order."""
        return Targets(self.length[chosen], self.ratio[chosen])


def targets(
    bins: Bins, log_tokens: NDArray[np.float64], log_inputs: NDArray[np.float64], cut: NDArray[np.bool_]
) -> Targets:
    """Of answers of so many (log) tokens to so long inputs, some of them `cut`."""
    return Targets(_fits(bins.length, log_tokens, cut), _fits(bins.ratio, log_tokens - log_inputs, cut))


def _fits(edges: NDArray[np.float64], at: NDArray[np.float64], cut: NDArray[np.bool_]) -> Single:
    widths = np.diff(edges)
    found = np.zeros((len(at), len(widths)))
    bins = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, len(widths) - 1)
    rows = np.arange(len(at))
    found[rows, bins] = 1.0 / widths[bins]
    above = np.clip((edges[1:] - at[cut, None]) / widths, 0.0, 1.0)
    above[:, -1] = np.maximum(above[:, -1], 0.05)  # beyond all that was seen: the last bin is what is left
    found[cut] = above
    return found.astype(np.float32)


def loss(found: Outputs, wanted: Targets) -> tuple[Single, Single]:
    """(negative log likelihood of each answer, its gradient by the logits)."""
    parts = (found.length * wanted.length, found.ratio * wanted.ratio)
    likelihood = np.stack([part.sum(axis=1) for part in parts], axis=1) + 1e-9
    total = (found.gate * likelihood).sum(axis=1)
    share = found.gate * likelihood / total[:, None]
    gradients = [
        share[:, index, None] * (probabilities - parts[index] / likelihood[:, index, None])
        for index, probabilities in enumerate((found.length, found.ratio))
    ]
    return -np.log(total), np.concatenate([*gradients, found.gate - share], axis=1)
