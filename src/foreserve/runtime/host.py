"""Drives one engine by messages: the same code in a worker process and in the event loop of the gateway."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from itertools import zip_longest
from typing import Any, cast

from foreserve.core import Chunk, EngineLoad, Work
from foreserve.errors import EngineStartError
from foreserve.messages import (
    Abort,
    Credit,
    Drain,
    Drained,
    Exit,
    Feed,
    FromWorker,
    Heartbeat,
    Ready,
    Run,
    Start,
    StartFailed,
    ToWorker,
)  # fmt: skip
from foreserve.ports import Engine
from foreserve.runtime import leases
from foreserve.runtime.factory import EngineFactory, in_words, make
from foreserve.runtime.later import Later
from foreserve.runtime.limits import Upkeep
from foreserve.runtime.outbox import Outbox
from foreserve.runtime.requests import Requests, finish
from foreserve.runtime.resting import Resting

log = logging.getLogger(__name__)

CLOSE_LIMIT_S = 10.0
"""How long an engine may take to close."""


class EngineHost:
    """One engine, from `Start` to `Exit`. `closed` is set when nothing more will be sent.

    Every `Work` of a `Run` ends with exactly one finish, unless the host is told to exit first. `send` is as `Outbox`
    has it. `upkeep` is given where the process is this host's own; elsewhere `Start.memory_bytes` bounds nothing. Where
    `later` is given, what was imported until the engine was ready is told.
    """

    def __init__(
        self,
        factory_loader: Callable[[str], EngineFactory],
        send: Callable[[FromWorker], None],
        upkeep: Upkeep | None = None,
        later: Later | None = None,
    ) -> None:
        self.closed = asyncio.Event()
        self.start_failed: str | None = None
        self.failed: str | None = None
        """What the engine said when it found itself of no use, on one line."""
        self._load_factory = factory_loader
        self._upkeep = upkeep
        self._later = later
        self._ran = False  # since the last heartbeat
        self._loop = asyncio.get_running_loop()
        self._context = leases.scope()  # other engines of this process have other weights by the same names
        self._engine: Engine | None = None
        self._requests: Requests | None = None
        self._resting: Resting | None = None
        self._started = self._draining = self._exiting = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbox = Outbox(send, self._cut_off)

    def handle(self, message: ToWorker) -> None:
        """Take one message. Returns at once; what an engine does wrong is told in messages, never raised."""
        if self._exiting:
            return
        match message:
            case Start():
                self._start(message)
            case Run():
                self._run(message.works, message.plan)
            case Drain():
                self._draining = True
                self._drained()
            case Exit():
                self._exiting = True
                self._spawn(self._exit())
            case Feed() if self._requests:
                self._requests.feed(message)
            case Credit() if self._requests:
                self._requests.credit(message.id, message.n)
            case Abort() if self._requests:
                for request_id, attempt in zip_longest(message.ids, message.attempts[: len(message.ids)]):
                    self._requests.abort(request_id, attempt)

    def pause(self) -> None:
        """Ask the engine for nothing more until `resume`: what is sent is not read."""
        if self._requests:
            self._requests.pause()

    def resume(self) -> None:
        """Undo `pause`."""
        if self._requests:
            self._requests.resume()

    def abandon(self) -> None:
        """End as a killed process does: nothing more is sent, the engine's tasks are cancelled."""
        self._exiting = True
        self._outbox.silence()
        self._cancel_tasks()
        self.closed.set()

    # --- life

    def _start(self, message: Start) -> None:
        if self._started:
            log.warning("a second start is ignored: this host has its engine")
            return
        self._started = True
        self._spawn(self._starting(message))

    async def _starting(self, message: Start) -> None:
        try:
            leases.begin(message.weights)  # they come while the engine's packages are imported
            self._engine = cast(Engine, make(self._load_factory, message.factory, message.options))
            info = await self._engine.start()
            if self._upkeep is not None:
                aborts = getattr(self._engine, "aborts_without_memory", False)
                self._upkeep.started(message.memory_bytes, raises=not aborts)
            self._outbox.tell(Ready(info, os.getpid()))
            if self._later is not None:
                self._outbox.tell(self._later.told())
        except (Exception, SystemExit) as error:
            expected = isinstance(error, EngineStartError)
            # One that could not do its work tells why by its `StartFailed`; a defect has to be found by its traceback.
            level = logging.DEBUG if expected else logging.WARNING
            log.log(level, "the engine %s did not start: %s", message.factory, error, exc_info=not expected)
            self.start_failed = in_words(message.factory, error)
            self._outbox.tell(StartFailed(self.start_failed))
            self._exiting = True
            self.closed.set()
            return
        static = info.batching == "static"
        self._requests = Requests(self._engine, static, self._outbox, self._spawn, self._drained)
        if hasattr(self._engine, "hand_over"):
            self._engine.hand_over(self._requests)
        by_itself = self._engine if hasattr(self._engine, "rest") else None
        if by_itself is not None or any(ref.device is not None for ref in message.weights):
            hold, tell = self._requests.hold, self._outbox.tell
            self._resting = Resting(message.rest_s, hold, self._spawn, tell, self._fail, by_itself)
        self._spawn(self._beat(self._engine, message.heartbeat_s))
        if hasattr(self._engine, "failed"):
            self._spawn(self._fate(self._engine))

    async def _beat(self, engine: Engine, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                self._outbox.tell(Heartbeat(await engine.load()))
            except Exception:
                log.exception("the engine could not tell its load")
                self._outbox.tell(Heartbeat(EngineLoad()))
            if self._requests is not None:
                idle, self._ran = self._requests.idle and not self._ran, False
                if self._resting is not None:
                    self._resting.look(idle, self._loop.time())
                if self._upkeep is not None and (over := self._upkeep.look(idle, self._loop.time())):
                    await self._fail(over)
                    return

    async def _fate(self, engine: Any) -> None:
        """An engine in our own process cannot exit; one that says that it has failed is ended as if it had."""
        await self._fail(await engine.failed())

    async def _fail(self, reason: str) -> None:
        if not self._exiting:
            self.failed = " ".join(reason.split()) or "it did not say why"
            log.warning("the engine has failed: %s", self.failed)
            self._exiting = True
            await self._exit()

    async def _exit(self) -> None:
        self._outbox.flush()
        others = self._cancel_tasks()
        try:
            if others:
                await asyncio.wait(others, timeout=CLOSE_LIMIT_S)
            if self._engine is not None:
                async with asyncio.timeout(CLOSE_LIMIT_S):
                    await self._engine.close()
        except (Exception, SystemExit):
            log.exception("the engine did not close")
        finally:
            self.closed.set()

    def _cancel_tasks(self) -> set[asyncio.Task[None]]:
        """All but the one that calls; without a finish for what they ran."""
        if self._requests:
            self._requests.abandon()
        mine = asyncio.current_task()
        others = {task for task in self._tasks if task is not mine}
        for task in others:
            task.cancel()
        return others

    # --- work

    def _run(self, works: Sequence[Work], plan: Any) -> None:
        self._ran = True
        if self._requests is None or self._draining:
            words = "this replica is draining and takes no new work" if self._draining else "the engine is not ready"
            for work in works:
                self._outbox.put(Chunk(id=work.id, index=0, attempt=work.attempt, finish=finish("rejected", words)))
        else:
            self._requests.run(works, plan)
            if self._resting is not None:
                self._resting.wanted()

    def _cut_off(self, chunk: Chunk) -> None:
        if self._requests:
            self._requests.cut_off(chunk)

    def _drained(self) -> None:
        if self._draining and not self._exiting and (self._requests is None or self._requests.idle):
            self._outbox.tell(Drained())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
