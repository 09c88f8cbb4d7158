"""A worker process is killed while it works for a pipeline: what it gave is taken back, what it was given is kept."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from foreserve.clock import now
from foreserve.core import Request
from foreserve.pipelines.events import Item, Retracted
from foreserve.pipelines.run import Run
from foreserve.running import Running
from tests.services.lossy_app import app


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Running]:
    running = app.run()
    await running.start()
    yield running
    await running.stop(1.0)
    running.ledger.check(idle=True)


def submit(running: Running, name: str, n: int) -> Run:
    request = Request(id=f"{name}-{n}", service=name, payload=None, arrival=now())
    return running.pipelines[name].submit(request, {"n": n}, listens=True)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_killed_replica_had_given_is_taken_back(running: Running):
    run = submit(running, "gives", 5)
    first: list[int] = []
    events = []
    async for event in run.each():
        events.append(event)
        if isinstance(event, Item) and len(events) == 2:
            first.append(event.value)
            os.kill(event.value, signal.SIGKILL)
    result = run.value()
    assert len(result) == 5
    assert first[0] not in result
    at = next(i for i, event in enumerate(events) if isinstance(event, Retracted))
    assert [event.value for event in events[at:] if isinstance(event, Item)] == result


@pytest.mark.asyncio(loop_scope="module")
async def test_a_replica_that_is_fed_is_replaced_by_one_that_is_given_all(running: Running):
    run = submit(running, "takes", 8)
    service = running.services["gathers"]
    async with asyncio.timeout(20):
        while not service.dispatcher.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        flight = next(iter(service.dispatcher.running.values()))
        replica = next(each for each in service.replicas.all if each.name == flight.replica)
        assert replica.pid is not None
        os.kill(replica.pid, signal.SIGKILL)
        result = await run.result()
    assert result[:-1] == list(range(8))
    assert result[-1] != replica.pid
