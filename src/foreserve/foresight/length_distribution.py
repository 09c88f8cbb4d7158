"""Distributions of answer lengths on one grid, and what is read from them.

A length of n tokens is the cell from n - 0.5 to n + 0.5, so that lengths have a density and a quantile falls within the
cell of the token count that it means: where every answer has one token, p50 is 1.0 and p95 is 1.45.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from foreserve.core import Length

Floats = NDArray[np.float64]
LEVELS: Final = (0.5, 0.8, 0.95)
"""The quantiles that a `Length` has."""


def _edges() -> Floats:
    edges = [0.5]
    while edges[-1] < 2**18:
        edges.append(max(edges[-1] + 1, float(np.floor(edges[-1] * 1.1)) + 0.5))
    return np.array(edges)


EDGES: Final = _edges()
"""Tokens: every length up to 10 its own cell, then about a tenth wider each; up to a quarter of a million."""

_EDGES: Final[list[float]] = EDGES.tolist()
LOG_EDGES: Final = np.log(EDGES)
CELLS: Final = len(EDGES) - 1


def cell(tokens: float) -> int:
    """The index of the cell that holds a length; what is beyond the grid is in its last."""
    return min(max(bisect_left(_EDGES, tokens) - 1, 0), CELLS - 1)


def quantiles(cdf: Floats, levels: Floats) -> Floats:
    """Where each row's distribution reaches its `levels`, (rows, any number). `cdf`: (rows, edges), ends at 1."""
    alone = len(cdf) == 1
    right = np.searchsorted(cdf[0], levels) if alone else (cdf[:, None, :] < levels[:, :, None]).sum(axis=2)
    right = np.minimum(np.maximum(right, 1), CELLS)
    rows = np.arange(len(cdf))[:, None]
    low, high = cdf[rows, right - 1], cdf[rows, right]
    share = np.minimum(np.maximum((levels - low) / np.maximum(high - low, 1e-12), 0.0), 1.0)
    found: Floats = EDGES[right - 1] + share * (EDGES[right] - EDGES[right - 1])
    return found


def level_of(cdf: Floats, tokens: Floats) -> Floats:
    """The opposite of `quantiles`: each row's distribution function at its own `tokens`."""
    right = np.clip(np.searchsorted(EDGES, tokens, side="left"), 1, CELLS)
    rows = np.arange(len(cdf))
    share = np.clip((tokens - EDGES[right - 1]) / (EDGES[right] - EDGES[right - 1]), 0.0, 1.0)
    return cdf[rows, right - 1] + share * (cdf[rows, right] - cdf[rows, right - 1])


def means(cdf: Floats, most: Floats) -> Floats:
    """Each row's mean length where nothing is longer than its `most`."""
    widths = np.clip(np.minimum(EDGES[1:], most[:, None] + 0.5) - EDGES[:-1], 0.0, None)
    survival = 1.0 - (cdf[:, 1:] + cdf[:, :-1]) / 2
    found: Floats = EDGES[0] + (survival * widths).sum(axis=1)
    return found


def read(cdf: Floats, most: Sequence[int], source: str, *, levels: Floats, mean: Floats) -> list[Length]:
    """Lengths of a batch: quantiles at `levels` (3 a row, or one row), all within 1 and the request's `most`."""
    limits = np.maximum(np.asarray(most, np.float64), 1.0)
    found = np.minimum(np.maximum(quantiles(cdf, levels), 1.0), limits[:, None])
    p50, p80, p95 = np.maximum.accumulate(found, axis=1).T.tolist()
    mean = np.minimum(np.maximum(mean, 1.0), limits)
    return [
        Length(mean=mean_, p50=a, p80=b, p95=c, source=source)
        for mean_, a, b, c in zip(mean.tolist(), p50, p80, p95, strict=True)
    ]
