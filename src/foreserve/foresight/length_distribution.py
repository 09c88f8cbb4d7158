"""Distributions of answer lengths on one grid, and what is read from them.

A length of n tokens is the cell from n - 0.5 to n + 0.5, so that lengths have a density and a quantile falls within the
cell of the token count that it means: where every answer has one token, p50 is 1.0 and p95 is 1.45.
"""

from __future__ import annotations

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

LOG_EDGES: Final = np.log(EDGES)
CELLS: Final = len(EDGES) - 1


def cell(tokens: float) -> int:
    """The index of the cell that holds a length; what is beyond the grid is in its last."""
    return min(max(int(np.searchsorted(EDGES, tokens, side="left")) - 1, 0), CELLS - 1)


def quantiles(cdf: Floats, level: Floats | float) -> Floats:
    """Where each row's distribution reaches `level` (one for all or one each). `cdf`: (rows, edges), ends at 1."""
    level = np.broadcast_to(np.asarray(level, np.float64), len(cdf))
    right = np.clip((cdf < level[:, None]).sum(axis=1), 1, CELLS)
    rows = np.arange(len(cdf))
    low, high = cdf[rows, right - 1], cdf[rows, right]
    share = np.clip((level - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
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
    """Lengths of a batch: quantiles at `levels` (rows, 3), every number within 1 and the request's `most`."""
    limits = np.maximum(np.asarray(most, np.float64), 1.0)
    columns = [np.clip(quantiles(cdf, levels[:, index]), 1.0, limits) for index in range(len(LEVELS))]
    p50, p80, p95 = np.maximum.accumulate(np.stack(columns), axis=0).tolist()
    mean = np.clip(mean, 1.0, limits)
    return [
        Length(mean=mean_, p50=a, p80=b, p95=c, source=source)
        for mean_, a, b, c in zip(mean.tolist(), p50, p80, p95, strict=True)
    ]
