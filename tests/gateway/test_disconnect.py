from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from foreserve.core import OutcomeKind
from tests.gateway.house import House
from tests.gateway.scripted import cancelled
from tests.gateway.test_openai import body


def cancels(house: House) -> int:
    counted: int = house.ask(
        lambda running: sum(running.ledger.ended(OutcomeKind.CANCELLED, child=child) for child in (False, True))
    )
    return counted


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for is on another loop
            await asyncio.sleep(0.01)


def running_now(house: House) -> int:
    counted: int = house.ask(lambda running: running.services["chat"].status().running)
    return counted


@pytest.mark.parametrize("words", [{}, {"n": 2}, {"stream": True}, {"stream": True, "n": 2}])
async def test_a_client_that_leaves_before_its_answer_stops_its_work(house: House, words: dict[str, Any]):
    before = cancels(house)
    stopped = len(cancelled)
    async with httpx.AsyncClient(base_url=house.url) as client:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=body("hang", **words)))
        await until(lambda: running_now(house) == words.get("n", 1))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: running_now(house) == 0)
    await until(lambda: len(cancelled) - stopped == words.get("n", 1))
    # A group is counted as a root too.
    assert cancels(house) - before == (3 if "n" in words else 1)


async def test_a_client_that_leaves_within_its_stream_stops_its_work(house: House):
    before = cancels(house)
    async with httpx.AsyncClient(base_url=house.url) as client:
        request = client.stream("POST", "/v1/chat/completions", json=body("say a|hang", stream=True))
        async with request as reply:
            async for line in reply.aiter_lines():
                assert line.startswith("data: ")
                break
    await until(lambda: running_now(house) == 0)
    assert cancels(house) - before == 1
