"""One side of the fact checker, a process of its own: `python -m benchmarks.pipeline_client SIDE URL RATE COUNT SEED`.

Prints a JSON object: latencies in seconds by question, and the results.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
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


async def drive(side: str, url: str, rate: float, count: int, seed: int) -> dict[str, Any]:
    """`count` questions that come by chance, `rate` in a second."""
    async with _session() as session:
        ask = make(side, session, url)
        tasks = []
        for number, gap in enumerate(np.random.default_rng(seed).exponential(1 / rate, count)):
            await asyncio.sleep(gap)
            tasks.append(asyncio.create_task(_timed(ask, number)))
        found = await asyncio.gather(*tasks)
    return {"latencies": [seconds for seconds, _ in found], "results": [result for _, result in found]}


async def drive_in_turn(sides: Sequence[str], url: str, count: int) -> dict[str, dict[str, Any]]:
    """`count` questions, one after the other, each by all sides in an order that goes round; the first one warms up."""
    async with _session() as session:
        asks = {side: make(side, session, url) for side in sides}
        found: dict[str, dict[str, Any]] = {side: {"latencies": [], "results": []} for side in sides}
        for side in sides:
            await asks[side](question(1000))
        for number in range(count):
            turn = number % len(sides)
            for side in (*sides[turn:], *sides[:turn]):
                seconds, result = await _timed(asks[side], number)
                found[side]["latencies"].append(seconds)
                found[side]["results"].append(result)
    return found


if __name__ == "__main__":
    name, url, rate, count, seed = sys.argv[1:]
    print(json.dumps(asyncio.run(drive(name, url, float(rate), int(count), int(seed)))))
