"""Functions in worker processes that a test kills; the pipelines over them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import foreserve as fs


@fs.function(replicas=2, idempotent=True, max_running=8)
async def pids(n: int) -> AsyncIterator[int]:
    """Its process, again and again: by it the test knows whom to end, and who has given what."""
    for _ in range(n):
        yield os.getpid()
        await asyncio.sleep(0.1)


@fs.function(replicas=2, idempotent=True, max_running=8)
async def gathers(items: fs.Stream[int]) -> list[int]:
    """What came, and the process that had all of it."""
    return [*await items.to_list(), os.getpid()]


@fs.stage
async def slowly(n: int) -> AsyncIterator[int]:
    for i in range(n):
        await asyncio.sleep(0.1)
        yield i


@fs.pipeline
def gives(n: int) -> Any:
    return pids(n)


@fs.pipeline
def takes(n: int) -> Any:
    return gathers(slowly(n))


app = fs.App(pids=pids, gathers=gathers, gives=gives, takes=takes, state={"history": False})
