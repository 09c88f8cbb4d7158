"""Which replicas are likely to have the beginnings of prompts in their caches: by what was sent there, bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from foreserve.core import Prefix, Work

CACHE_TOKENS: Final = 65_536
"""What is taken to fit into a replica's cache where it does not tell."""

MOST_BLOCKS: Final = 200_000
"""Over all replicas together; about 40 MB."""


class _Cache:
    """One replica's, as it should be: blocks and what else was computed there, least recently used first, in tokens."""

    __slots__ = ("parts", "tokens")

    def __init__(self) -> None:
        self.parts: OrderedDict[int | str, int] = OrderedDict()
        self.tokens = 0


class Prefixes:
    """The memory of a placement. Deterministic: what it knows follows from the calls alone.

    A replica keeps what it has used last, up to `cache_tokens` of it; what is computed there beside known blocks takes
    room as well. A replica that is gone is forgotten with the oldest of what is known.
    """

    def __init__(self, cache_tokens: int = CACHE_TOKENS, most_blocks: int = MOST_BLOCKS) -> None:
        self._cache_tokens = cache_tokens
        self._most_blocks = most_blocks
        self._caches: OrderedDict[str, _Cache] = OrderedDict()
        self._where: dict[int, dict[str, None]] = {}
        """Who has a block."""
        self._blocks = 0

    def __len__(self) -> int:
        return self._blocks

    def hits(self, prefix: Prefix | None) -> Mapping[str, int]:
        """Of each replica that has some of it, how many tokens; those with most first."""
        found: dict[str, int] = {}
        if prefix is None or not self._where:
            return found
        where, tokens = self._where, prefix.block_tokens
        for at in range(len(prefix.blocks), 0, -1):
            # A block's number tells all before it: who has a later one has those too, as far as we know.
            for replica in where.get(prefix.blocks[at - 1], ()):
                if replica not in found:
                    found[replica] = at * tokens
        return found

    def sent(self, work: Work, replica: str, cache_tokens: float | None = None) -> int:
        """It runs there. How many tokens of its prompt should be cached; the rest of it will be from now on.

        `cache_tokens` are all that fit there, where that is known.
        """
        prefix = work.prefix
        if prefix is None or not prefix.blocks:
            return 0
        cache = self._caches.get(replica)
        if cache is None:
            cache = self._caches[replica] = _Cache()
        self._caches.move_to_end(replica)
        parts, tokens, known = cache.parts, prefix.block_tokens, 0
        for at, block in enumerate(prefix.blocks, 1):
            if block in parts:
                known = at
            else:
                parts[block] = tokens
                cache.tokens += tokens
                self._blocks += 1
                self._where.setdefault(block, {})[replica] = None
        rest = max(0, _size(work) - tokens * len(prefix.blocks))
        cache.tokens += rest - parts.pop(work.id, 0)
        if rest:
            parts[work.id] = rest
        # The last part goes first, as one without those before it is of no use.
        for block in reversed(prefix.blocks):
            parts.move_to_end(block)
        most = self._cache_tokens if cache_tokens is None else cache_tokens
        while cache.tokens > most and len(parts) > 1:
            self._drop(replica, cache)
        while self._blocks > self._most_blocks:
            oldest, its = next(iter(self._caches.items()))
            self._drop(oldest, its)
            if not its.parts:
                del self._caches[oldest]
        return known * tokens

    def _drop(self, replica: str, cache: _Cache) -> None:
        part, tokens = cache.parts.popitem(last=False)
        cache.tokens -= tokens
        if isinstance(part, int):
            self._blocks -= 1
            where = self._where[part]
            del where[replica]
            if not where:
                del self._where[part]


def _size(work: Work) -> int:
    """Tokens that are computed for it, as far as is foreseen."""
    if work.forecast is not None:
        return work.forecast.input_tokens + round(work.forecast.output.mean)
    return work.ramp.base if work.ramp is not None else 0


def longest(works: Sequence[Work]) -> Work:
    """The one whose beginning is worth most."""
    return max(works, key=lambda work: 0 if work.prefix is None else len(work.prefix.blocks))
