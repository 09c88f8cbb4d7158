"""How long a step takes, read from a profile's tables: bilinear inside, straight on outside, never falling.

A measured table may fall where noise is larger than the slope; there the larger neighbour below counts, so that more
work never takes less time. Plain floats and one bisection a look-up: this is the inner loop of a simulation.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from foreserve.engines.profile import DecodeTable, PrefillTable

_SLACK = 1e-9
_ROUNDING = 1e-12
"""Of the first step, and of all of them: what keeps a number of steps that is whole but for rounding from being rounded
up by one. Where later steps are longer by far, their rounding is more than the first one's share."""


class Line:
    """A function of x >= 0 through points, straight between them and beyond the last, never falling, never negative."""

    __slots__ = ("_last", "_slopes", "_xs", "_ys")

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        xs, ys = [float(x) for x in xs], list(accumulate(map(float, ys), max))
        if xs[0] > 0.0:
            slope = (ys[1] - ys[0]) / (xs[1] - xs[0]) if len(xs) > 1 else 0.0
            xs, ys = [0.0, *xs], [max(0.0, ys[0] - slope * xs[0]), *ys]
        slopes = [(b - a) / (right - left) for (left, right), (a, b) in zip(pairwise(xs), pairwise(ys), strict=True)]
        self._xs, self._ys = xs, ys
        self._slopes = [*slopes, slopes[-1] if slopes else 0.0]
        self._last = len(xs) - 1

    def at(self, x: float) -> float:
        """Its value."""
        piece = bisect_right(self._xs, x) - 1
        return self._ys[piece] + self._slopes[piece] * (x - self._xs[piece])

    def total(self, x: float, steps: int) -> float:
        """The sum of its values at x, x + 1, …, `steps` of them, in closed form."""
        xs = self._xs
        piece = bisect_right(xs, x) - 1
        if piece == self._last or x + steps - 1 < xs[piece + 1]:
            return steps * (self._ys[piece] + self._slopes[piece] * (x - xs[piece] + (steps - 1) * 0.5))
        here = math.ceil(xs[piece + 1] - x)
        return self.total(x, here) + self.total(x + here, steps - here)

    def steps(self, x: float, seconds: float, most: int) -> int:
        """How many of those it takes until their sum is at least `seconds`, at most `most`."""
        xs, piece = self._xs, bisect_right(self._xs, x) - 1
        slope = self._slopes[piece]
        first = self._ys[piece] + slope * (x - xs[piece])
        seconds -= max(_SLACK * first, _ROUNDING * seconds)
        if seconds <= 0.0:
            return 0
        here = most if piece == self._last else min(most, math.ceil(xs[piece + 1] - x))
        if here * (first + slope * (here - 1) * 0.5) >= seconds:
            return _steps(first, slope, seconds)
        if here == most:
            return most
        return here + self.steps(x + here, seconds - here * (first + slope * (here - 1) * 0.5), most - here)


def _steps(first: float, slope: float, seconds: float) -> int:
    """The least k for which k * first + slope * k * (k - 1) / 2 is at least `seconds`."""
    if slope <= 0.0:
        return math.ceil(seconds / first)
    half = first - slope * 0.5
    steps = math.ceil((math.sqrt(half * half + 2.0 * slope * seconds) - half) / slope)
    # The root is rounded: one step too many or too few is put right.
    if steps > 1 and (steps - 1) * (half + slope * (steps - 1) * 0.5) >= seconds:
        return steps - 1
    return steps if steps * (half + slope * steps * 0.5) >= seconds else steps + 1


class PrefillCost:
    """Seconds of a step that computes tokens of prompts."""

    def __init__(self, table: PrefillTable) -> None:
        tokens, before, seconds = _from_zero(table.tokens, table.before, table.seconds)
        self._tokens = tokens
        self._rows = [Line(before, row) for row in seconds]
        self._fresh = Line(self._tokens, [row.at(0.0) for row in self._rows])

    def at(self, tokens: float, before: float) -> float:
        """`tokens` of prompts, after `before` tokens of context on average."""
        if before <= 0.0 or len(self._tokens) == 1:
            return self._fresh.at(tokens)
        xs = self._tokens
        piece = min(bisect_right(xs, tokens) - 1, len(xs) - 2)
        low, high = self._rows[piece].at(before), self._rows[piece + 1].at(before)
        share = (tokens - xs[piece]) / (xs[piece + 1] - xs[piece])
        seconds = low + (high - low) * share
        return max(seconds, high) if share > 1.0 else seconds


class DecodeCost:
    """Seconds of a step that gives each of several sequences one token."""

    def __init__(self, table: DecodeTable) -> None:
        sequences, self._context, seconds = _from_zero(table.sequences, table.context, table.seconds)
        self._columns = [Line(sequences, column) for column in zip(*seconds, strict=True)]
        self._lines: dict[int, Line] = {}

    def line(self, sequences: int) -> Line:
        """For so many sequences, by the context that each holds on average, which grows by one token a step."""
        line = self._lines.get(sequences)
        if line is None:
            line = Line(self._context, [column.at(sequences) for column in self._columns])
            self._lines[sequences] = line
        return line


def _from_zero(
    xs: Sequence[float], ys: Sequence[float], rows: Sequence[Sequence[float]]
) -> tuple[list[float], list[float], list[list[float]]]:
    """The same table from 0 on both ways, no value below one before it in its row or its column."""
    wide = [Line(ys, row) for row in _rising(rows)]
    ys = [float(y) for y in dict.fromkeys([0, *ys])]
    columns = [Line(xs, column) for column in zip(*([line.at(y) for y in ys] for line in wide), strict=True)]
    xs = [float(x) for x in dict.fromkeys([0, *xs])]
    return xs, ys, _rising([[column.at(x) for column in columns] for x in xs])


def _rising(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """The same, no value below one before it in its row or its column."""
    risen: list[list[float]] = []
    for row in rows:
        above = risen[-1] if risen else [0.0] * len(row)
        risen.append(list(accumulate((max(pair) for pair in zip(row, above, strict=True)), max)))
    return risen
