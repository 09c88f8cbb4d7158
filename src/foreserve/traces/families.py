"""Requests that share a prefix stay or go together: a draw that is equal for all of a family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from foreserve.traces.drawing import generator
from foreserve.traces.row import TraceRow

MOST_SHARE: Final = 0.002
MOST_ROWS: Final = 32
"""A family is at most so large a share of the requests so far, or so many: otherwise the draw would be of few."""

DEPTH: Final = 64
"""Blocks of a prompt that are looked at."""

MOST_COUNTED: Final = 262_144

_BLOCK: Final = 1024
_WORD: Final = (1 << 64) - 1


class Families:
    """A family are the requests whose prompts begin with the same block.

    Where too many do (they share an instruction, not a conversation), it is told apart by the first block that fewer
    have in common: such an instruction is met again and again whichever of its requests stay. Requests without such
    a block are drawn one by one.
    """

    def __init__(self, seed: int) -> None:
        self._salt = int(generator(seed, 2).integers(1 << 63))
        self._uniforms = uniforms(seed)
        self._rows = 0
        self._counts: dict[int, int] = {}

    def draw(self, row: TraceRow) -> float:
        """From 0 to 1, without 1. Call it for each row, in order."""
        self._rows += 1
        most = max(MOST_ROWS, MOST_SHARE * self._rows)
        counts = self._counts
        family: int | None = None
        for block in row.prefix[:DEPTH]:
            count = counts[block] = counts.get(block, 0) + 1
            if family is None and count <= most:
                family = block
        if len(counts) > MOST_COUNTED:
            self._forget()
        return next(self._uniforms) if family is None else _mixed(family ^ self._salt)

    def _forget(self) -> None:
        """The rarest, until half of them are left."""
        kept = sorted(self._counts.items(), key=lambda item: -item[1])[: MOST_COUNTED // 2]
        self._counts = dict(kept)


def uniforms(seed: int, *place: int) -> Iterator[float]:
    """Numbers from 0 to 1, the same for the same seed and place."""
    rng = generator(seed, *place)
    while True:
        yield from rng.random(_BLOCK).tolist()


def _mixed(word: int) -> float:
    """SplitMix64's finish: neighbours have nothing to do with each other."""
    word = (word + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return ((word ^ (word >> 31)) >> 11) / float(1 << 53)
