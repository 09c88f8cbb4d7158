"""Drives one engine by messages: the same code in a worker process and in the event loop of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import msgspec

from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Work
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
from foreserve.runtime.factory import EngineFactory, in_words, make
from foreserve.runtime.flight import Flight, Running
from foreserve.runtime.outbox import Outbox

log = logging.getLogger(__name__)

ABORT_LIMIT_S = 5.0
"""How long an engine may take to end a request it was told to cancel before it is taken from it by force."""

CLOSE_LIMIT_S = 10.0
"""How long an engine may take to close."""


class EngineHost:
    """One engine, from `Start` to `Exit`. `closed` is set when nothing more will be sent.

    Every `Work` of a `Run` ends with exactly one finish, whatever the engine does: raise, end early, go on after its
    finish, ignore a cancel. Chunks are numbered here. For `send` see `Outbox`.
    """

    def __init__(self, factory_loader: Callable[[str], EngineFactory], send: Callable[[FromWorker], None]) -> None:
        self.closed = asyncio.Event()
        self.start_failed: str | None = None
        self.failed: str | None = None
        """What the engine said when it found itself of no use."""
        self._load_factory = factory_loader
        self._loop = asyncio.get_running_loop()
        self._engine: Engine | None = None
        self._info: EngineInfo | None = None
        self._started = self._draining = self._exiting = self._paused = False
        self._running: dict[str, Running] = {}
        self._flights: dict[Flight, None] = {}
        self._batch: Flight | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbox = Outbox(send, self._cut_off)

    # --- commands

    def handle(self, message: ToWorker) -> None:
        """Take one message. Returns at once; what an engine does wrong is told in messages, never raised."""
        if self._exiting:
            return
        match message:
            case Start():
                self._start(message)
            case Run():
                self._run(message)
            case Feed():
                self._feed(message)
            case Credit():
                if (running := self._running.get(message.id)) and running.credits is not None:
                    running.credits += message.n
                    running.flight.wake()
            case Abort():
                for request_id in message.ids:
                    if running := self._running.get(request_id):
                        self._abort(running)
            case Drain():
                self._draining = True
                self._drained()
            case Exit():
                self._exiting = True
                self._spawn(self._exit())

    def pause(self) -> None:
        """Ask engines for nothing more until `resume`: what is sent is not read."""
        self._paused = True

    def resume(self) -> None:
        """Undo `pause`."""
        self._paused = False
        for flight in self._flights:
            flight.wake()

    def abandon(self) -> None:
        """End as a killed process does: nothing more is sent, the engine's tasks are cancelled."""
        self._exiting = True
        self._outbox.silence()
        for running in self._running.values():
            running.ended()
        for task in self._tasks:
            task.cancel()
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
            self._engine = cast(Engine, make(self._load_factory, message.factory, message.options))
            self._info = await self._engine.start()
            self._outbox.tell(Ready(self._info, os.getpid()))
        except (Exception, SystemExit) as error:
            expected = isinstance(error, EngineStartError)
            log.warning("the engine %s did not start: %s", message.factory, error, exc_info=not expected)
            self.start_failed = in_words(message.factory, error)
            self._outbox.tell(StartFailed(self.start_failed))
            self._exiting = True
            self.closed.set()
            return
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

    async def _fate(self, engine: Any) -> None:
        """An engine in our own process cannot exit; one that says that it has failed is ended as if it had."""
        self.failed = await engine.failed()
        log.warning("the engine has failed: %s", self.failed)
        if not self._exiting:
            self._exiting = True
            await self._exit()

    async def _exit(self) -> None:
        others = self._tasks - {asyncio.current_task()}
        for task in others:
            task.cancel()
        for running in self._running.values():
            running.ended()
        try:
            if others:
                await asyncio.wait(others, timeout=CLOSE_LIMIT_S)
            if self._engine is not None:
                await asyncio.wait_for(self._engine.close(), CLOSE_LIMIT_S)
        except (Exception, SystemExit):
            log.exception("the engine did not close")
        finally:
            self._outbox.flush()
            self.closed.set()

    # --- requests

    def _run(self, message: Run) -> None:
        taken: list[Work] = []
        for work in message.works:
            if (there := self._running.get(work.id)) and there.attempt == work.attempt:
                log.warning("request %s already runs here; the second run is ignored", work.id)
            elif refusal := self._refusal(work):
                self._outbox.put(Chunk(id=work.id, index=0, attempt=work.attempt, finish=_finish("rejected", refusal)))
            else:
                taken.append(work)
        if not taken or self._info is None:
            return
        static = self._info.batching == "static"
        for works in [taken] if static else [[work] for work in taken]:
            flight = Flight(works)
            self._running |= flight.live
            self._flights[flight] = None
            before = self._batch
            if static:
                self._batch = flight
            flight.task = self._spawn(self._fly(flight, works, message.plan, static, before))

    def _refusal(self, work: Work) -> str | None:
        if self._info is None:
            return "the engine is not ready"
        if self._draining:
            return "this replica is draining and takes no new work"
        if work.id in self._running:
            return f"attempt {self._running[work.id].attempt} of this request still runs here"
        return None

    async def _fly(self, flight: Flight, works: Sequence[Work], plan: Any, static: bool, before: Flight | None) -> None:
        engine = self._engine
        assert engine is not None
        iterator: Any = None
        try:
            if static and before is not None and before.task is not None and not before.task.done():
                await asyncio.wait({before.task})  # one batch at a time: the last one may still be tidying up
            while self._blocked(flight):
                await flight.asleep()
            works = [work for work in works if work.id in flight.live]
            if not works:
                return
            flight.begun = True
            iterator = engine.run_batch(works, plan) if static else engine.run(works[0], plan)
            async for item in iterator:
                if not flight.live:
                    log.warning("the engine goes on after the finish of %s", ", ".join(work.id for work in works))
                    break
                for chunk in item if static else (item,):
                    self._deliver(flight, chunk)
                while self._blocked(flight):
                    await flight.asleep()
            self._fail(flight, "the engine ended this request without a finish")
        except asyncio.CancelledError:
            if not self._exiting:
                self._fail(flight, "CancelledError: the engine gave this request up")
        except (Exception, SystemExit) as error:
            log.exception("the engine failed while it ran %s", ", ".join(flight.live))
            self._fail(flight, f"{type(error).__name__}: {error}")
        finally:
            if hasattr(iterator, "aclose"):
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    await iterator.aclose()
            del self._flights[flight]
            self._drained()

    def _blocked(self, flight: Flight) -> bool:
        return bool(flight.live) and (self._paused or flight.out_of_credit())

    def _deliver(self, flight: Flight, chunk: Chunk) -> None:
        running = flight.live.get(chunk.id)
        if running is None:
            return  # it has ended: what comes after a finish is dropped
        if chunk.finish is None and running.aborted:
            return
        if running.credits is not None:
            running.credits -= 1
        if chunk.index != running.index or chunk.attempt != running.attempt:
            chunk = msgspec.structs.replace(chunk, index=running.index, attempt=running.attempt)
        running.index += 1
        self._outbox.put(chunk)
        if chunk.finish is not None:
            self._forget(running)

    def _fail(self, flight: Flight, error: str) -> None:
        for running in list(flight.live.values()):
            self._end(running, _finish("cancelled") if running.aborted else _finish("error", error))

    def _end(self, running: Running, finish: Finish) -> None:
        self._outbox.put(Chunk(id=running.id, index=running.index, attempt=running.attempt, finish=finish))
        self._forget(running)

    def _forget(self, running: Running) -> None:
        running.ended()
        del self._running[running.id]

    def _cut_off(self, chunk: Chunk) -> None:
        """The outbox has ended a request whose chunk it could not send."""
        if (running := self._running.get(chunk.id)) and running.attempt == chunk.attempt:
            self._forget(running)
            self._spawn(self._cancel(chunk.id))

    def _abort(self, running: Running) -> None:
        if running.aborted:
            return
        if not running.flight.begun:
            self._end(running, _finish("cancelled"))  # the engine has not heard of it
            return
        running.aborted = True
        running.flight.wake()
        self._spawn(self._cancel(running.id))
        running.timer = self._loop.call_later(ABORT_LIMIT_S, self._take_away, running)

    async def _cancel(self, request_id: str) -> None:
        assert self._engine is not None
        try:
            await self._engine.cancel(request_id)
        except (Exception, SystemExit):
            log.exception("the engine could not cancel %s", request_id)

    def _take_away(self, running: Running) -> None:
        log.warning("the engine did not end %s within %g s of its cancel", running.id, ABORT_LIMIT_S)
        flight = running.flight
        if flight.task is not None and all(other.aborted for other in flight.live.values()):
            flight.task.cancel()
        else:
            self._end(running, _finish("cancelled"))

    def _feed(self, message: Feed) -> None:
        running = self._running.get(message.id)
        if running is None or running.aborted:
            return
        feed = getattr(self._engine, "feed", None)
        if feed is None:
            self._end(running, _finish("rejected", "this engine takes no prompt that is still growing"))
            self._spawn(self._cancel(message.id))
        else:
            running.feeding = self._spawn(self._feeding(running, feed, message, running.feeding))

    async def _feeding(self, running: Running, feed: Any, message: Feed, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        try:
            result = feed(message.id, message.data, message.last)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            log.exception("the engine failed while it was fed %s", message.id)
            if self._running.get(message.id) is running:
                self._end(running, _finish("error", f"{type(error).__name__}: {error}"))
                await self._cancel(message.id)

    def _drained(self) -> None:
        if self._draining and not self._exiting and not self._flights:
            self._outbox.tell(Drained())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _finish(reason: Any, error: str | None = None) -> Finish:
    return Finish(reason=reason, error=error)
