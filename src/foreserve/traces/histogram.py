"""Counters that stay small however much is counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

_EXACT_BITS: Final = 11
"""Numbers are counted by their leading bits: exactly below 2048, to a two-thousandth above."""

MOST_NAMES: Final = 10_000
OTHERS: Final = "(others)"

MOST_HASHES: Final = 262_144
_MIX: Final = 0x9E3779B97F4A7C15
_WORD: Final = (1 << 64) - 1

BINS: Final = 720


def nearest_rank(share: float, count: int) -> int:
    """Which of `count` numbers in order, from 1, is the quantile: the least that `share` of them are not above."""
    return max(1, math.ceil(share * count - 1e-9))  # 0.07 of 100 is 7.000000000000001, and the 7th


def largest_first(counts: Mapping[str, int]) -> dict[str, int]:
    """By name, most frequent first; equal ones by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class Histogram:
    """Numbers of at least 0, kept as whole numbers of `1 / scale`."""

    def __init__(self, scale: float = 1.0) -> None:
        self.count = 0
        self.total = 0.0
        self._scale = scale
        self._most = 0.0
        self._counts: dict[int, int] = {}

    def add(self, value: float) -> None:
        """Count one."""
        whole = round(value * self._scale)
        shift = whole.bit_length() - _EXACT_BITS
        if shift > 0:
            whole = (whole >> shift << shift) + (1 << shift - 1)  # the middle of all that are counted with it
        self._counts[whole] = self._counts.get(whole, 0) + 1
        self.count += 1
        self.total += value
        self._most = max(self._most, value)

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """For each of `shares`, in rising order: the number of nearest rank. 1.0 is the largest."""
        found: list[float] = []
        below = 0
        items = iter(sorted(self._counts.items()))
        value = 0
        for share in shares:
            rank = nearest_rank(share, self.count)
            while below < rank:
                value, count = next(items)
                below += count
            found.append(self._most if share >= 1.0 else min(value / self._scale, self._most))
        return found

    def cdf(self, most: int) -> list[tuple[float, float]]:
        """(number, share of all that are not above it), in at most `most` steps and a last one."""
        points: list[tuple[float, float]] = []
        below = 0
        told = -1.0
        for value, count in sorted(self._counts.items()):
            below += count
            if below / self.count - told >= 1.0 / most or below == self.count:
                told = below / self.count
                points.append((min(value / self._scale, self._most), told))
        return points


class Named:
    """How often each name came. Beyond 10,000 names the further ones are counted together."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, name: str) -> None:
        """Count one."""
        if name not in self._counts and len(self._counts) >= MOST_NAMES:
            name = OTHERS
        self._counts[name] = self._counts.get(name, 0) + 1

    def counts(self) -> dict[str, int]:
        """By name, most frequent first."""
        return largest_first(self._counts)


class SeenBefore:
    """The share of prefix blocks that had come before. When there are many, it is that of a sample of the hashes.

    A hash is in the sample or not by its own bits, so each block that is looked at is known from its first coming on.
    """

    def __init__(self, most: int = MOST_HASHES) -> None:
        self.blocks = 0
        self._most = most
        self._mask = 0
        self._known: set[int] = set()
        self._looked_at = 0.0
        self._seen = 0.0

    def add(self, prefix: Sequence[int]) -> None:
        """The blocks of one prompt."""
        self.blocks += len(prefix)
        mask, known = self._mask, self._known
        for block in prefix:
            mixed = (block * _MIX & _WORD) >> 32
            if mixed & mask:
                continue
            self._looked_at += mask + 1
            if mixed << 64 | block in known:
                self._seen += mask + 1
            else:
                known.add(mixed << 64 | block)
        while len(self._known) > self._most:
            self._mask = self._mask * 2 + 1
            self._known = {entry for entry in self._known if not (entry >> 64) & self._mask}

    def share(self) -> float | None:
        """`None` where there were no blocks."""
        return self._seen / self._looked_at if self._looked_at else None


class Timeline:
    """Sums over equal bins of time: of one-second ones at first, ever wider so that there are at most 720."""

    def __init__(self) -> None:
        self.width_s = 1.0
        self.sums: list[list[float]] = [[], [], []]

    def add(self, at: float, input_tokens: int, output_tokens: int) -> None:
        """One request at second `at`."""
        place = int(at // self.width_s)
        while place >= BINS:
            self.width_s *= 2
            place = int(at // self.width_s)
            self.sums = [
                [sum(bins[pair : pair + 2]) for pair in range(0, len(bins), 2)]  # two bins become one
                for bins in self.sums
            ]
        for bins, value in zip(self.sums, (1.0, float(input_tokens), float(output_tokens)), strict=True):
            if place >= len(bins):
                bins.extend([0.0] * (place + 1 - len(bins)))
            bins[place] += value
