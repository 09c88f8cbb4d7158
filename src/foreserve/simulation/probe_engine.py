"""One engine, started as it would be served and driven by messages, with no dispatcher between."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from foreserve.clock import precise
from foreserve.core import EngineInfo, EngineSpec, Work
from foreserve.engines.generation import Count, Generate, Tokens
from foreserve.errors import EngineStartError
from foreserve.loadgen.arrivals import Generator
from foreserve.messages import Abort, Chunks, FromWorker, Ready, Run, StartFailed
from foreserve.ports import Connection, Launcher
from foreserve.simulation.probe import Asked, EngineLost, Probe, Wanted

GRACE_S: Final = 5.0
"""How long the engine may take to close."""


class EngineProbe(Probe):
    """A context: `async with EngineProbe(launcher, spec, rng, vocabulary) as probe`. Nothing of it is left at its end.

    Raises EngineStartError when the engine does not start.
    """

    def __init__(self, launcher: Launcher, spec: EngineSpec, rng: Generator, vocabulary: int) -> None:
        super().__init__(rng, vocabulary)
        self.start_s = 0.0
        """How long it took to be ready."""
        self._launcher = launcher
        self._spec = spec
        self._ready: asyncio.Future[EngineInfo] | None = None
        self._connection: Connection | None = None
        self._asked: dict[str, Asked] = {}

    async def __aenter__(self) -> Self:
        began = precise()
        self._ready = asyncio.get_running_loop().create_future()
        try:
            self._connection = await self._launcher.launch("calibrate", self._spec, self)
            self.info = await self._ready
        except BaseException:
            await self._stop()
            raise
        self.start_s = precise() - began
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        if self._connection is not None:
            await self._connection.stop(GRACE_S)

    # --- what is asked

    def send(self, *wanted: Wanted) -> list[Asked]:
        """See `Probe`. One batch, where static."""
        works, asked = [], []
        for prompt, most in wanted:
            ids = self.prompt(prompt) if isinstance(prompt, int) else prompt
            id = self._name()
            payload = Generate(prompt=ids, max_tokens=most, temperature=0.0, ignore_eos=True)
            cost = {"slots": 1.0, "kv_tokens": float(len(ids) + most)}
            works.append(Work(id=id, payload=payload, cost=cost, arrival=0.0))
            asked.append(Asked(id, len(ids), most, 0.0))
        if self._lost is not None or self._connection is None:
            raise EngineLost(self._lost or "the engine was not started")
        for each in asked:
            self._asked[each.id] = each
            each.at = precise()
        self._connection.send(Run(works=tuple(works)))
        return asked

    async def stop(self, asked: Sequence[Asked]) -> None:
        """See `Probe`."""
        if self._connection is not None and (ids := tuple(each.id for each in asked if each.ended is None)):
            self._connection.send(Abort(ids=ids))
        await asyncio.gather(*(each.done for each in asked))

    # --- what it answers (see `ports.Listener`)

    def heard(self, message: FromWorker) -> None:
        at = precise()
        match message:
            case Ready(info=info) if self._ready is not None:
                self._ready.set_result(info)
            case StartFailed(reason=reason):
                self._fail(reason)
            case Chunks(chunks=chunks):
                for chunk in chunks:
                    asked = self._asked.get(chunk.id)
                    if asked is None:
                        continue
                    asked.came(_tokens(chunk.data), at)
                    if chunk.finish is not None:
                        asked.over(at, chunk.finish)
                        del self._asked[chunk.id]
        self._news.set()

    def exited(self, reason: str) -> None:
        """See `ports.Listener`."""
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        self._lost = self._lost or f"the engine is gone: {reason}"
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(EngineStartError(reason))
        for asked in self._asked.values():
            if not asked.done.done():
                asked.done.set_exception(EngineLost(self._lost))
        self._asked.clear()
        self._news.set()

    def memory_bytes(self) -> int:
        """What its process holds, shared pages by its share of them (Pss); 0 where that is not told."""
        pid = None if self._connection is None else self._connection.pid
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _tokens(data: Any) -> int:
    """How many tokens a chunk brings, whether it has crossed a process or not."""
    if isinstance(data, Tokens):
        return len(data.ids)
    if isinstance(data, Count):
        return data.tokens
    if isinstance(data, Mapping):
        return len(data["ids"]) if "ids" in data else int(data.get("tokens", 0))
    return 0
