"""The prefix cache of a simulated engine: which parts of prompts are still in the KV cache, and who shares them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

_LEAST_UNIT = 16
"""Tokens of a prompt that are hashed together at least, where the request brings no hashes of its own."""


class _Part(msgspec.Struct):
    blocks: int
    holders: int


class PrefixCache:
    """Parts of prompts by hash. A part that somebody holds stays; the others go, least recently used first.

    It counts in KV blocks and knows no capacity: `shrink` is told how much has to go.
    """

    def __init__(self) -> None:
        self.shared = 0
        """Blocks of parts that somebody holds, each counted once."""
        self.idle = 0
        """Blocks of parts that nobody holds: they cost nobody anything until their room is needed."""
        self._parts: dict[int, _Part] = {}
        self._idle: OrderedDict[int, int] = OrderedDict()

    def hits(self, units: Sequence[int]) -> tuple[int, int]:
        """How many of the first units are there, and how many blocks of those nobody holds now."""
        parts, there, idle = self._parts, 0, 0
        for unit in units:
            part = parts.get(unit)
            if part is None:
                break
            there += 1
            if not part.holders:
                idle += part.blocks
        return there, idle

    def hold(self, unit: int, blocks: int) -> None:
        """Somebody holds this part; it is put there if it was not."""
        part = self._parts.get(unit)
        if part is None:
            part = self._parts[unit] = _Part(blocks=blocks, holders=0)
        elif not part.holders:
            del self._idle[unit]
            self.idle -= part.blocks
        if not part.holders:
            self.shared += part.blocks
        part.holders += 1

    def release(self, units: Sequence[int]) -> None:
        """Somebody holds these no more. The last of them goes first: one without those before it is of no use."""
        for unit in reversed(units):
            part = self._parts[unit]
            part.holders -= 1
            if not part.holders:
                self.shared -= part.blocks
                self.idle += part.blocks
                self._idle[unit] = part.blocks

    def shrink(self, blocks: int) -> None:
        """Let at least so many blocks go, as far as there are idle ones."""
        while blocks > 0 and self._idle:
            unit, size = self._idle.popitem(last=False)
            del self._parts[unit]
            self.idle -= size
            blocks -= size


def whole_units(prefix: tuple[int, ...], tokens: int, block: int) -> tuple[tuple[int, ...], int]:
    """Hashes of parts of `tokens` tokens each, as parts of whole KV blocks of `block` tokens: hashes and their size.

    A hash stands for the prompt up to its end, so that leaving out some of them makes larger parts.
    """
    group = block // math.gcd(block, tokens)
    return (prefix if group == 1 else prefix[group - 1 :: group]), group * tokens


def hashed(prompt: Sequence[int], block: int) -> tuple[tuple[int, ...], int]:
    """Hashes of the parts of a prompt that brings none, of whole KV blocks of `block` tokens, and the parts' size.

    A hash of whole numbers is the same in every process.
    """
    unit = -(-_LEAST_UNIT // block) * block
    units: list[int] = []
    for end in range(unit, len(prompt) + 1, unit):
        units.append(hash((units[-1] if units else 0, *prompt[end - unit : end])))
    return tuple(units), unit
