"""What a pipeline itself costs: items through three stages, and one hop more, in process and to a worker process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import foreserve as fs
from foreserve.clock import now
from foreserve.core import Request
from foreserve.pipelines.pipeline import Pipeline
from foreserve.pipelines.run import Run

ITEMS = 50_000
HOPS = 8


@fs.stage
async def numbers(n: int) -> AsyncIterator[int]:
    """The source, which is none of the three stages."""
    for number in range(n):
        yield number


@fs.stage
async def plus_one(x: int) -> int:
    """Inline: it cannot wait."""
    return x + 1


@fs.stage
async def worded(x: int) -> str:
    """Inline too."""
    return f"{x}"


@fs.stage
async def lengths(words: fs.Stream[str]) -> int:
    """Reads a stream."""
    return sum([len(word) async for word in words])


@fs.stage
async def waits(x: int) -> int:
    """In a task of its own, since it may wait."""
    await asyncio.sleep(0)
    return x + 1


@fs.function(max_running=4)
async def remote(x: int) -> int:
    """In a worker process."""
    return x + 1


def _three(n: int) -> Any:
    return lengths(numbers(n).map(plus_one).map(worded))


def _chain(stage: Any, hops: int) -> Any:
    def chain(x: int) -> Any:
        for _ in range(hops):
            x = stage(x)
        return x

    return chain


async def items_per_second(repeats: int) -> list[float]:
    """Items through three stages (map, map, and one that reads the stream), each with its whole ancestry."""
    three, found = Pipeline(_three), []
    for _ in range(repeats):
        began = time.perf_counter()
        run = Run(three.plan, {"n": ITEMS}).start()
        await run.result()
        found.append(ITEMS / (time.perf_counter() - began))
        levels = [channel.indices for channel in run.streams()]
        assert all(indices == list(range(ITEMS)) for indices in levels)
    return found


async def hop_in_process(repeats: int) -> list[float]:
    """Seconds that one more stage adds, in a task of its own."""
    short, long = Pipeline(_chain(waits, 1), "short"), Pipeline(_chain(waits, 1 + HOPS), "long")
    return [(await _timed(long) - await _timed(short)) / HOPS for _ in range(repeats)]


async def _timed(pipeline: Pipeline) -> float:
    began = time.perf_counter()
    await pipeline(1)
    return time.perf_counter() - began


async def hop_between_processes(repeats: int) -> list[float]:
    """Seconds that one more function adds, through its dispatcher to a worker process and back."""
    short = fs.pipeline(_chain(remote, 1))
    long = fs.pipeline(_chain(remote, 1 + HOPS))
    running = fs.App(remote=remote, short=short, long=long, state={"history": False}).run()
    await running.start()
    try:

        async def timed(name: str, number: int) -> float:
            request = Request(id=f"{name}{number}", service=name, payload=None, arrival=now())
            began = time.perf_counter()
            await running.pipelines[name].submit(request, {"x": 1}, listens=False).result()
            return time.perf_counter() - began

        for number in range(20):
            await timed("long", -1 - number)
        return [(await timed("long", number) - await timed("short", number)) / HOPS for number in range(repeats)]
    finally:
        await running.stop(1.0)
