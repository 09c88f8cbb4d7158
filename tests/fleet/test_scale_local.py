"""Worker processes that are started and ended while requests run."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foreserve.core import EngineSpec, OutcomeKind
from foreserve.fleet.contexts import Contexts
from foreserve.fleet.local import LocalLauncher
from foreserve.fleet.replica import State
from foreserve.fleet.replicas import Replicas
from tests.fleet.test_scale_conservation import House

ENGINES = Path(__file__).parent / "engines.py"


class LocalHouse(House):
    def __init__(self, least: int, drain_s: float, contexts: Contexts | None = None) -> None:
        super().__init__(least, drain_s)
        spec = EngineSpec(factory=f"{ENGINES}:Echo", options={"slots": 2})
        self.contexts = contexts
        self.local = LocalLauncher(contexts=contexts)
        self.replicas = Replicas(
            "test", lambda: [spec] * 3, self.local, self.dispatcher, lambda _: None, least=least, drain_s=drain_s
        )
        self.pids: set[int] = set()

    async def until_ready(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.replicas.ready) != count or len(self.replicas.all) != count:
                self.pids |= {replica.pid for replica in self.replicas.all if replica.pid}
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        async with asyncio.timeout(30):
            await asyncio.gather(*self.readers)
        await self.replicas.stop(5.0)
        await self.local.close()
        self.ledger.check(idle=True)
        for pid in self.pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


async def trickle(house: House, seconds: float) -> None:
    """Requests all the time, a little more than two replicas run at once."""
    async with asyncio.timeout(seconds + 10):
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            house.submit(0.02)
            await asyncio.sleep(0.04)


@pytest.fixture(params=["fresh", "forked"])
async def house(request: pytest.FixtureRequest) -> AsyncIterator[LocalHouse]:
    contexts = Contexts()
    house = LocalHouse(least=1, drain_s=30.0, contexts=contexts if request.param == "forked" else None)
    await house.replicas.start()
    yield house
    await house.local.close()
    await contexts.close()


async def test_processes_come_and_go_under_load(house: LocalHouse):
    coming = asyncio.create_task(trickle(house, 2.0))
    for wanted in (3, 1, 2, 1):
        house.replicas.scale(wanted)
        await house.until_ready(wanted)
    await coming
    await house.end()
    assert len(house.outcomes) > 30
    assert {(outcome.kind, outcome.attempt) for outcome in house.outcomes.values()} == {(OutcomeKind.DONE, 0)}
    assert len({outcome.replica for outcome in house.outcomes.values()}) >= 2
    assert house.replicas.start_s > 0


async def test_one_that_is_killed_while_it_drains_loses_nothing(house: LocalHouse):
    house.replicas.scale(2)
    await house.until_ready(2)
    for _ in range(4):
        house.submit(0.05)
    await asyncio.sleep(0.1)
    house.replicas.scale(1)
    (leaving,) = [replica for replica in house.replicas.all if replica.state is State.ISOLATED]
    assert len(leaving.held) == 2
    assert leaving.pid is not None
    os.kill(leaving.pid, signal.SIGKILL)
    await house.end()
    assert [outcome.kind for outcome in house.outcomes.values()] == [OutcomeKind.DONE] * 4
    assert sorted(outcome.again for outcome in house.outcomes.values()) == ["", "", *["replica lost, resumed"] * 2]
    assert [replica.name for replica in house.replicas.all] == ["test/0.1"], "nobody has taken its place"


async def test_long_answers_go_on_elsewhere_after_the_drain(house: LocalHouse):
    house.replicas._drain_s = 0.1
    house.replicas.scale(2)
    await house.until_ready(2)
    for _ in range(2):
        house.submit(0.1)
    await asyncio.sleep(0.15)
    house.replicas.scale(1)
    await house.end()
    assert [outcome.kind for outcome in house.outcomes.values()] == [OutcomeKind.DONE] * 2
    assert sorted(outcome.again for outcome in house.outcomes.values()) == ["", "replica left, resumed"]


async def test_stopping_while_processes_start_leaves_none(house: LocalHouse):
    house.replicas.scale(3)
    for _ in range(100):
        await asyncio.sleep(0)
    house.pids |= {replica.pid for replica in house.replicas.all if replica.pid}
    house.replicas.scale(2)
    await house.end()
    if house.contexts is None:
        assert len(house.pids) == 3
    else:  # those that had not been forked yet never were, or were killed
        async with asyncio.timeout(10):
            while any(context.offspring.workers for context in house.contexts.all):  # noqa: ASYNC110  # nobody else has to know
                await asyncio.sleep(0.01)
