"""The sides of the fact checker as clients of one server: one request after the other, or as they come by chance."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import numpy as np

from benchmarks.pipeline_app import question

SIDES = ("checked", "checked_whole", "langgraph", "byhand")

Side = Callable[[str], Awaitable[Any]]


class Meaning:
    """Our function, asked over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = f"{url}/v1/functions/meaning"

    async def __call__(self, query: str) -> list[float]:
        async with self._session.post(self._url, json={"query": query}) as reply:
            reply.raise_for_status()
            found: list[float] = (await reply.json())["result"]
            return found


class Served:
    """Our pipeline, asked over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, url: str, name: str) -> None:
        self._session = session
        self._url = f"{url}/v1/pipelines/{name}"

    async def __call__(self, asked: str) -> Any:
        """One request."""
        async with self._session.post(self._url, json={"question": asked}) as reply:
            reply.raise_for_status()
            return (await reply.json())["result"]


def make(side: str, session: aiohttp.ClientSession, url: str) -> Side:
    """A side by its name."""
    if side == "langgraph":
        from benchmarks.pipeline_langgraph import LangGraph

        return LangGraph(url, Meaning(session, url))
    if side == "byhand":
        from benchmarks.pipeline_byhand import ByHand

        return ByHand(url, Meaning(session, url))
    return Served(session, url, side)


@asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=3600)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def _timed(ask: Side, number: int) -> tuple[float, Any]:
    began = time.perf_counter()
    result = await ask(question(number))
    return time.perf_counter() - began, result


class Driven(msgspec.Struct):
    """Of one side: latencies in seconds and results, by question."""

    latencies: list[float] = []
    results: list[Any] = []


async def drive(side: str, url: str, rate: float, count: int, seed: int, limit_s: float) -> Driven:
    """`count` questions that come by chance, `rate` in a second; all at once where that is infinite.

    Raises TimeoutError when that takes longer than `limit_s`.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    tasks: list[asyncio.Task[tuple[float, Any]]] = []
    async with _session() as session:
        ask = make(side, session, url)
        try:
            async with asyncio.timeout(limit_s):
                for number, gap in enumerate(gaps):
                    await asyncio.sleep(gap)
                    tasks.append(asyncio.create_task(_timed(ask, number)))
                found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return Driven(latencies=[seconds for seconds, _ in found], results=[result for _, result in found])


async def drive_in_turn(sides: Sequence[str], url: str, count: int, limit_s: float) -> dict[str, Driven]:
    """At most `count` questions, one after the other, each by all sides in an order that goes round.

    A first one warms up. None is begun after `limit_s`, but for the first two.
    """
    async with _session() as session:
        asks = {side: make(side, session, url) for side in sides}
        found = {side: Driven() for side in sides}
        began = time.perf_counter()
        for side in sides:
            await asks[side](question(1000))
        for number in range(count):
            if number > 1 and time.perf_counter() - began > limit_s:
                break
            turn = number % len(sides)
            for side in (*sides[turn:], *sides[:turn]):
                seconds, result = await _timed(asks[side], number)
                found[side].latencies.append(seconds)
                found[side].results.append(result)
    return found
