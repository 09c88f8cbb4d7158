"""How a prompt begins, as numbers: for a placement that knows which replica has computed such a beginning before."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from foreserve.core import Prefix
from foreserve.settings import ServiceSettings

BLOCK_TOKENS: Final = 64
MOST_BLOCKS: Final = 32
"""Of one prompt; what it shares with others beyond that is not told."""

BYTES_PER_TOKEN: Final = 4
"""Rough, for English text, as all that is guessed of what passes to another server."""

BY_COUNTS: Final = ("least_requests", "least_tokens", "round_robin")
"""Placements that make no use of it."""


def wanted(settings: ServiceSettings, placement: str, replicas: int) -> bool:
    """Whether anything comes of telling it: with several replicas, and a placement that may look at it."""
    return replicas > 1 and placement not in BY_COUNTS and getattr(settings, "prefix_caching", True)


def of_tokens(prompt: Sequence[int]) -> Prefix | None:
    """Of token ids; `None` of less than a block. The same in every process."""
    return _told(array("I", prompt[: BLOCK_TOKENS * MOST_BLOCKS]).tobytes(), BLOCK_TOKENS * array("I").itemsize)


def of_bytes(text: memoryview | bytes) -> Prefix | None:
    """Of a text or JSON whose tokens are not known: blocks of as many bytes as so many tokens have in English."""
    return _told(text[: BLOCK_TOKENS * BYTES_PER_TOKEN * MOST_BLOCKS], BLOCK_TOKENS * BYTES_PER_TOKEN)


def of_hashes(hashes: Sequence[int], block_tokens: int) -> Prefix | None:
    """Of a trace's own, each of the prompt up to its block's end."""
    return Prefix(block_tokens=block_tokens, blocks=tuple(hashes[: 2 * MOST_BLOCKS])) if hashes else None


def _told(data: memoryview | bytes, size: int) -> Prefix | None:
    blocks = []
    chain = blake2b(digest_size=7)
    for end in range(size, len(data) + 1, size):
        chain.update(data[end - size : end])
        blocks.append(int.from_bytes(chain.copy().digest()))
    return Prefix(block_tokens=BLOCK_TOKENS, blocks=tuple(blocks)) if blocks else None
