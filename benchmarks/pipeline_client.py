"""One side of the fact checker, a process of its own: `python -m benchmarks.pipeline_client SIDE URL RATE COUNT SEED`.

Prints a JSON object: latencies in seconds by question, and the results.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
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


async def drive(side: str, url: str, rate: float, count: int, seed: int) -> dict[str, Any]:
    """`count` questions that come by chance, `rate` in a second; with rate 0 one after the other."""
    timeout = aiohttp.ClientTimeout(total=3600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        ask = make(side, session, url)
        latencies, results = [0.0] * count, [None] * count

        async def one(number: int) -> None:
            began = time.perf_counter()
            results[number] = await ask(question(number))
            latencies[number] = time.perf_counter() - began

        tasks = []
        for number, gap in enumerate(np.random.default_rng(seed).exponential(1.0, count)):
            if rate:
                await asyncio.sleep(gap / rate)
                tasks.append(asyncio.create_task(one(number)))
            else:
                await one(number)
        await asyncio.gather(*tasks)
        return {"latencies": latencies, "results": results}


if __name__ == "__main__":
    name, url, rate, count, seed = sys.argv[1:]
    print(json.dumps(asyncio.run(drive(name, url, float(rate), int(count), int(seed)))))
