"""From noisy measurements to tables: medians, order where noise has broken it, and what is missing filled in."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final, TypeVar

import numpy as np

K = TypeVar("K")

_ROUNDS: Final = 50


def medians(cells: Mapping[K, Sequence[float]]) -> dict[K, float]:
    """The middle of what was measured of each."""
    return {at: float(median(values)) for at, values in cells.items() if values}


def product_slope(cells: Mapping[tuple[int, int], float], base: Mapping[int, float]) -> float:
    """How much each row times column adds, by least squares: `cell = base[row] + slope * row * column`. At least 0."""
    products = np.array([row * column for (row, column) in cells if row in base], dtype=float)
    extra = np.array([seconds - base[row] for (row, _), seconds in cells.items() if row in base])
    weight = float(products @ products)
    return max(0.0, float(products @ extra) / weight) if weight else 0.0


def context_slope(points: Sequence[tuple[int, int, float]]) -> float:
    """What a token of context adds to a decode step, of (sequences, context of each, seconds). At least 0.

    By least squares, with a level of its own for each number of sequences.
    """
    by_sequences: dict[int, list[tuple[float, float]]] = {}
    for sequences, context, seconds in points:
        by_sequences.setdefault(sequences, []).append((float(sequences * context), seconds))
    above = below = 0.0
    for pairs in by_sequences.values():
        held, seconds = np.array(pairs).T
        above += float((held - held.mean()) @ (seconds - seconds.mean()))
        below += float((held - held.mean()) @ (held - held.mean()))
    return max(0.0, above / below) if below else 0.0


def filled(
    cells: Mapping[tuple[int, int], float], rows: Sequence[int], columns: Sequence[int]
) -> tuple[list[list[float]], list[tuple[int, int]]]:
    """The whole table of `rows` and `columns`, and which of its cells were not measured.

    Some of the first column has to be there. Its other rows lie on straight lines between and beyond those; what else
    is missing follows from it: row times column adds evenly, as attention does with what it reads.
    """
    first = columns[0]
    seen = {row: cells[row, first] for row in rows if (row, first) in cells}
    base = {row: _on_lines(seen, row) for row in rows}
    known = {(row, column - first): seconds for (row, column), seconds in cells.items() if column != first}
    slope = product_slope(known, base)
    missing = [(row, column) for row in rows for column in columns if (row, column) not in cells]
    table = [
        [cells.get((row, column), base[row] + slope * row * (column - first)) for column in columns] for row in rows
    ]
    return table, missing


def _on_lines(seen: Mapping[int, float], row: int) -> float:
    """What is known of a row, or follows from the two nearest on its sides, or else the last two on one; at least 0."""
    if row in seen or len(seen) == 1:
        return seen.get(row, next(iter(seen.values())))
    known = sorted(seen)
    at = min(max(bisect(known, row), 1), len(known) - 1)
    a, b = known[at - 1], known[at]
    return max(0.0, seen[a] + (seen[b] - seen[a]) * (row - a) / (b - a))


def monotone(table: Sequence[Sequence[float]]) -> list[list[float]]:
    """The nearest table (about, by squares) that falls neither along its rows nor along its columns.

    Neighbours that noise has put in the wrong order share their mean (isotonic regression, by pooling), along the rows
    and the columns in turn, until nothing changes.
    """
    values = np.array(table, dtype=float)
    for _ in range(_ROUNDS):
        before = values.copy()
        values = np.apply_along_axis(_isotonic, 1, values)
        values = np.apply_along_axis(_isotonic, 0, values)
        if np.allclose(values, before, rtol=1e-9, atol=0.0):
            break
    ordered = np.maximum.accumulate(np.maximum.accumulate(values, axis=0), axis=1)
    return [[float(seconds) for seconds in row] for row in ordered]


def moved(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> float:
    """The largest change of a cell, as a share of what it was."""
    a, b = np.array(before), np.array(after)
    return float(np.max(np.abs(b - a) / np.maximum(a, 1e-9)))


def _isotonic(values: np.ndarray) -> np.ndarray:
    """Pool adjacent violators."""
    sums: list[float] = []
    counts: list[int] = []
    for value in values:
        sums.append(float(value))
        counts.append(1)
        while len(sums) > 1 and sums[-2] / counts[-2] > sums[-1] / counts[-1]:
            total, count = sums.pop(), counts.pop()
            sums[-1] += total
            counts[-1] += count
    return np.repeat([total / count for total, count in zip(sums, counts, strict=True)], counts)


USUAL_SHARE: Final = 0.6
"""`mixing` where it cannot be measured: what it was on a quiet machine (docs/calibration.md)."""

WIDE: Final = 0.5
"""Shares of which the middle 80 % are further apart are noise, whatever their median."""


def share_added(points: Sequence[tuple[float, float, float]]) -> tuple[float, str]:
    """`mixing`, of (seconds of the mixed step, of its prefill alone, of its decode alone): the middle of what all say.

    Between 0 (the decode comes free) and 1 (it takes all of its time). Where what was measured cannot tell, it is
    `USUAL_SHARE`, with a note in words; else the note is empty.
    """
    shares = [(both - prefill) / decode for both, prefill, decode in points]
    share, (low, high) = float(median(shares)), middle(shares)
    if -SLACK <= share <= 1.0 + SLACK and high - low <= WIDE:
        return min(1.0, max(0.0, share)), ""
    found = f"mixing: {share:.2f} was measured, mostly between {low:.2f} and {high:.2f}"
    return USUAL_SHARE, f"{found}, which is noise: {USUAL_SHARE} is assumed; measure again on a quiet machine"


SLACK: Final = 0.05
"""A share this far outside of what can be is that of its end."""


def added(changes: Sequence[float], least_s: float) -> tuple[float, str]:
    """`change_s`: the middle of what was measured, 0 below `least_s`, 0 with a note where it may be none."""
    seconds = float(median(changes)) if changes else 0.0
    if seconds < least_s:
        return 0.0, ""
    low, high = middle(changes)
    if low > 0.0:
        return seconds, ""
    found = f"change_s: {1e3 * seconds:.1f} ms was measured, mostly between {1e3 * low:.1f} and {1e3 * high:.1f} ms"
    return 0.0, f"{found}, which is noise: 0 is assumed; measure again on a quiet machine"


def middle(values: Sequence[float]) -> tuple[float, float]:
    """Between which 80 % of them lie."""
    low, high = np.quantile(np.array(values), (0.1, 0.9))
    return float(low), float(high)
