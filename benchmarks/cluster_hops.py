"""How long one request takes to an engine that answers at once: as a local process, and as a Ray actor."""

from __future__ import annotations

import asyncio
import time

import uvloop

from foreserve.core import Chunk, EngineInfo, EngineLoad, EngineSpec, Finish, Work
from foreserve.fleet.local import LocalLauncher
from foreserve.fleet.ray import RayLauncher
from foreserve.fleet.ray_cluster import Cluster
from foreserve.messages import Chunks, FromWorker, Ready, Run, StartFailed
from foreserve.ports import Launcher


class AtOnce:
    """An engine that answers each request with one chunk."""

    async def start(self) -> EngineInfo:
        return EngineInfo(batching="continuous", capacity={"slots": 1.0})

    async def run(self, work: Work, plan: object = None):  # type: ignore[no-untyped-def]
        yield Chunk(id=work.id, index=0, finish=Finish(reason="stop"))

    async def cancel(self, request_id: str) -> None: ...

    async def load(self) -> EngineLoad:
        return EngineLoad()

    async def close(self) -> None: ...


class _Ear:
    """Hears one replica."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.answer: asyncio.Future[None] = loop.create_future()

    def heard(self, message: FromWorker) -> None:
        if isinstance(message, Ready):
            self.ready.set_result(None)
        elif isinstance(message, StartFailed):
            self.ready.set_exception(RuntimeError(message.reason))
        elif isinstance(message, Chunks):
            self.answer.set_result(None)

    def exited(self, reason: str) -> None: ...


async def _times(launcher: Launcher, requests: int) -> list[float]:
    ear = _Ear()
    try:
        connection = await launcher.launch("hop", EngineSpec(factory=f"{__file__}:AtOnce"), ear)
        async with asyncio.timeout(60):
            await ear.ready
        await asyncio.sleep(5.0)  # Ray goes on starting processes of its own for a while
        times = []
        for number in range(requests + 10):
            ear.answer = asyncio.get_running_loop().create_future()
            start = time.perf_counter()
            connection.send(Run((Work(id=f"r{number}", payload=None, cost={"slots": 1.0}, arrival=0.0),)))
            async with asyncio.timeout(10):
                await ear.answer
            times.append(time.perf_counter() - start)
            await asyncio.sleep(0.002)
        return times[10:]
    finally:
        await launcher.close()


def hops(requests: int) -> tuple[list[float], list[float]]:
    """Seconds of each request, local and on Ray."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        local = runner.run(_make(False, requests))
        return local, runner.run(_make(True, requests))


async def _make(on_ray: bool, requests: int) -> list[float]:
    return await _times(RayLauncher(Cluster()) if on_ray else LocalLauncher(), requests)
