"""Stages that several tests use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

from foreserve.pipelines.stage import stage
from foreserve.pipelines.stream import Stream
from foreserve.pipelines.text import Text


@stage
async def count(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


@stage
async def double(x: int) -> int:
    return 2 * x


@stage
def plus(x: int, y: int) -> int:
    return x + y


@stage
async def slowly(x: int) -> int:
    """The later ones are the quicker."""
    await asyncio.sleep(1.0 / (x + 1))
    return x


@stage
async def odd_fails(x: int) -> int:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


@stage
async def total(xs: Stream[int]) -> int:
    return sum([x async for x in xs])


@stage
async def listed(xs: list[int]) -> list[int]:
    return xs


@stage
async def write(text: str) -> Text:
    """A character at a time, as a model does."""
    for part in text:
        await asyncio.sleep(0.01)
        yield part


@stage
async def shout(text: str) -> str:
    return text.upper()


@stage
async def in_time(first: int, later: Awaitable[int]) -> list[int]:
    return [first, await later]
