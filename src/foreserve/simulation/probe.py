"""One engine, started as it would be served and driven by messages, with no dispatcher between: for measuring it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from foreserve.clock import precise
from foreserve.core import EngineInfo, EngineSpec, Finish, Work
from foreserve.engines.generation import Count, Generate, Tokens
from foreserve.errors import EngineStartError
from foreserve.loadgen.arrivals import Generator
from foreserve.messages import Abort, Chunks, FromWorker, Ready, Run, StartFailed
from foreserve.ports import Connection, Launcher

GRACE_S: Final = 5.0
"""How long the engine may take to close."""


class EngineLost(EngineStartError):
    """The engine ended, or refused what it was asked, while it was measured; the message says why."""


class Asked:
    """One request on its way: when it was sent, when each of its tokens came, and its end. Times: `clock.precise`."""

    def __init__(self, id: str, prompt_tokens: int, most: int, at: float) -> None:
        self.id = id
        self.prompt_tokens = prompt_tokens
        self.most = most
        self.at = at
        self.times: list[float] = []
        self.ended: float | None = None
        self.done: asyncio.Future[Finish] = asyncio.get_running_loop().create_future()
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def first_s(self) -> float:
        """Seconds from sending to the first token."""
        return self.times[0] - self.at

    def decoding(self, at: float) -> bool:
        """Whether it had its first token at a time, and not yet its last."""
        return bool(self.times) and self.times[0] <= at and (len(self.times) < self.most or at < self.times[-1])

    def came(self, tokens: int, at: float) -> None:
        """So many tokens at once."""
        self.times += [at] * tokens
        if tokens and not self.begun.done():
            self.begun.set_result(None)


class Probe:
    """A context: `async with Probe(launcher, spec, rng, vocabulary) as probe`. Nothing of it is left at its end.

    `vocabulary` is how many token ids there are: prompts are drawn from them with `rng`, so no two begin alike. Raises
    EngineStartError when the engine does not start; what it is asked raises EngineLost when it fails later.
    """

    def __init__(self, launcher: Launcher, spec: EngineSpec, rng: Generator, vocabulary: int) -> None:
        self.start_s = 0.0
        """How long it took to be ready."""
        self._launcher = launcher
        self._spec = spec
        self._rng = rng
        self._vocabulary = vocabulary
        self._ready: asyncio.Future[EngineInfo] | None = None
        self._connection: Connection | None = None
        self._asked: dict[str, Asked] = {}
        self._count = 0
        self._lost: str | None = None
        self._news = asyncio.Event()

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

    def prompt(self, tokens: int) -> list[int]:
        """A new one that shares no block with any other."""
        drawn: list[int] = self._rng.integers(0, self._vocabulary, tokens).tolist()
        return drawn

    def send(self, *wanted: tuple[int | list[int], int]) -> list[Asked]:
        """Ask for all of these at once: (a prompt or its length, tokens of the answer). One batch, where static."""
        works, asked = [], []
        for prompt, most in wanted:
            ids = self.prompt(prompt) if isinstance(prompt, int) else prompt
            self._count += 1
            id = f"c{self._count}"
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

    async def ask(self, *wanted: tuple[int | list[int], int]) -> list[Asked]:
        """As `send`, and wait for the ends."""
        asked = self.send(*wanted)
        await self.ends(asked)
        return asked

    async def ends(self, asked: Sequence[Asked]) -> None:
        """Until all of these have ended."""
        for finish in await asyncio.gather(*(each.done for each in asked)):
            if finish.reason in ("rejected", "error"):
                raise EngineLost(f"the engine refused a request of the measurement: {finish.error}")

    async def begin(self, asked: Sequence[Asked]) -> None:
        """Until all of these have their first token, or have failed."""
        for each in asked:
            both: list[asyncio.Future[Any]] = [each.begun, each.done]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)

    async def news(self) -> None:
        """Until the next message of the engine has been taken in. Raises EngineLost when it is gone."""
        self._news.clear()
        await self._news.wait()
        if self._lost is not None:
            raise EngineLost(self._lost)

    async def stop(self, asked: Sequence[Asked]) -> None:
        """Ask for no more of these; returns once the engine has stopped them."""
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
                        asked.ended = at
                        asked.done.set_result(chunk.finish)
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
