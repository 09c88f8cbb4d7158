"""Functions of `cold_models` in a running house, scaled by hand, and called without HTTP."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks import cold_models
from benchmarks.common import ROOT
from foreserve.app import App
from foreserve.core import Request
from foreserve.models.catalog import locate
from foreserve.models.prepare import prepare
from foreserve.running import Running
from foreserve.services.function import Function
from foreserve.settings import Environment

FILE: Final = ROOT / "benchmarks" / "cold_models.py"
TEXT: Final = "the quick brown fox jumps over the lazy dog"
LIMIT_S: Final = 300.0
_numbers = count()


class Model(msgspec.Struct, frozen=True):
    """One of the models: its folder, and its class with and without shared weights."""

    name: str
    folder: Path
    shared: str
    private: str

    def kind(self, way: str = "shared", replicas: int = 1, **words: Any) -> Function:
        """As a service that is at none until it is called."""
        target = f"{FILE}:{self.shared if way == 'shared' else self.private}"
        more = {"weights": str(self.folder / "model.safetensors")} if way == "shared" else {}
        env = {"COLD_FOLDER": str(self.folder), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        # It is looked at only where a call waits, so that nobody but the benchmark lets workers go.
        scaling = {"every_s": 3600.0, "policy": "reactive"}
        return Function(target, replicas=(0, replicas), scaling=scaling, env=env, **more, **words)


def models(names: list[str], matrices: int) -> list[Model]:
    """Those of these names; the made one has so many matrices of 64 MiB."""
    found = []
    for name in names:
        if name == "minilm":
            found.append(Model(name, locate("minilm", "bench").path, "Minilm", "MinilmPrivate"))
        elif name == "smollm2":
            made = prepare(locate("smollm2", "bench"), "transformers", "bf16")
            found.append(Model(name, made.weights_path, "Smol", "SmolPrivate"))
        else:
            folder = Environment.read().cache / "benchmarks" / f"made-{matrices}"
            cold_models.make(folder, matrices)
            found.append(Model("made", folder, "Made", "MadePrivate"))
    return found


class House:
    """A running app with one function, `f`."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.service = running.services["f"]

    async def call(self, text: str = TEXT) -> tuple[float, Any]:
        """Seconds from the call to its answer, and that. Raises RuntimeError for any other end."""
        now = asyncio.get_running_loop().time()
        payload = self.service.kind.call({"text": text})  # type: ignore[attr-defined]
        began = time.perf_counter()
        request = Request(id=f"call-{next(_numbers)}", service="f", payload=payload, arrival=now)
        stream = self.service.submit(request)
        async with asyncio.timeout(LIMIT_S):
            answers = [item async for events in stream for item in events]
        took = time.perf_counter() - began
        if len(answers) != 1:
            raise RuntimeError(f"a call ended as {stream.outcome}")
        return took, answers[0]

    async def calls(self, number: int) -> list[float]:
        """So many at once; the seconds of each."""
        return [took for took, _ in await asyncio.gather(*(self.call() for _ in range(number)))]

    async def learned(self) -> None:
        """Once nothing is imported any more that workers were seen to import."""
        contexts = self.running.contexts
        lineages = [] if contexts is None else contexts.lineages
        for learner in (each.learner for each in lineages):
            while learner is not None and learner.copying is not None:
                await asyncio.wait([learner.copying])

    async def scale(self, workers: int) -> list[int]:
        """Have so many workers; returns their processes once all are ready, or gone."""
        replicas = self.service.replicas
        replicas.scale(workers)
        async with asyncio.timeout(LIMIT_S):
            while len(replicas.ready) != workers or len(replicas.all) != workers:  # noqa: ASYNC110  # seen from outside
                await asyncio.sleep(0.005)
        return [one.pid for one in replicas.all if one.pid is not None]


@asynccontextmanager
async def house(kind: Function, **runtime: Any) -> AsyncIterator[House]:
    """One that serves `kind`, started."""
    with tempfile.TemporaryDirectory() as folder:
        state = {"history": False, "folder": folder}
        running = App(f=kind, state=state, runtime=runtime).run()
        await running.start()
        try:
            yield House(running)
        finally:
            await running.stop(1.0)
