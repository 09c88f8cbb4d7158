"""The requests inside one engine: each ends with exactly one finish, whatever the engine does."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from foreserve.core import Chunk, Finish, FinishReason, Work
from foreserve.messages import Feed
from foreserve.ports import Engine
from foreserve.runtime.outbox import Outbox
from foreserve.runtime.pull import Pull, Running

log = logging.getLogger(__name__)

ABORT_LIMIT_S = 60.0
"""How long an engine may take to end a request it was told to cancel before it is taken from it by force.

Longer than a step, since the finish gives the slot back and the engine should really have stopped by then. It is there
so that an engine that forgets a cancel does not lose its slots one by one. What still runs in such an engine is its own
to count: it sees its iterator closed early, and says that it has `failed` when it has no means left.
"""


def finish(reason: FinishReason, error: str | None = None) -> Finish:
    """A finish of ours."""
    return Finish(reason=reason, error=error)


class Requests:
    """Pulls an engine's iterators, gated by credit, and numbers their chunks.

    An iterator that raises, ends early, goes on after its finish or ignores a cancel is dealt with here. `spawn` starts
    a task; `freed` is called when an iterator has ended.
    """

    def __init__(
        self,
        engine: Engine,
        static: bool,
        outbox: Outbox,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        freed: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._static = static
        self._outbox = outbox
        self._spawn = spawn
        self._freed = freed
        self._loop = asyncio.get_running_loop()
        self._paused = self._held = self._abandoned = False
        self._running: dict[str, Running] = {}
        self._pulls: dict[Pull, None] = {}
        self._batch: Pull | None = None

    def run(self, works: Sequence[Work], plan: Any) -> None:
        """Start them: together in a static engine, each by itself in a continuous one."""
        taken = [work for work in works if self._takes(work)]
        for together in ([taken] if self._static else [[work] for work in taken]) if taken else ():
            pull = Pull(together)
            self._running |= pull.live
            self._pulls[pull] = None
            before = self._batch
            if self._static:
                self._batch = pull
            pull.task = self._spawn(self._draw(pull, together, plan, before))

    def abort(self, request_id: str, attempt: int | None = None) -> None:
        """Stop it within one step of the engine: this `attempt`, or any. What is not running is ignored."""
        running = self._running.get(request_id)
        if running is None or running.aborted or attempt not in (None, running.attempt):
            return
        if not running.pull.begun:
            self._end(running, finish("cancelled"))  # the engine has not heard of it
            return
        running.aborted = True
        running.pull.wake()
        self._spawn(self._cancel(running.id))
        running.timer = self._loop.call_later(ABORT_LIMIT_S, self._take_away, running)

    def credit(self, request_id: str, n: int) -> None:
        """`n` more chunks may be asked of the engine for it."""
        if (running := self._running.get(request_id)) and running.credits is not None:
            running.credits += n
            running.pull.wake()

    def feed(self, message: Feed) -> None:
        """Hand the engine more of a prompt, in order. An engine that takes none has its request rejected."""
        running = self._running.get(message.id)
        if running is None or running.aborted:
            return
        feed = getattr(self._engine, "feed", None)
        if feed is None:
            self._end(running, finish("rejected", "this engine takes no prompt that is still growing"))
            self._spawn(self._cancel(message.id))
        else:
            running.feeding = self._spawn(self._feeding(running, feed, message, running.feeding))

    def cut_off(self, chunk: Chunk) -> None:
        """The outbox has ended a request whose chunk it could not send."""
        if (running := self._running.get(chunk.id)) and running.attempt == chunk.attempt:
            self._forget(running)
            self._spawn(self._cancel(chunk.id))

    def pause(self) -> None:
        """Ask the engine for nothing more until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Undo `pause`."""
        self._paused = False
        for pull in self._pulls:
            pull.wake()

    def hold(self, yes: bool) -> None:
        """Let no request reach the engine that it has not heard of yet, or (False) let them."""
        self._held = yes
        for pull in () if yes else self._pulls:
            pull.wake()

    def abandon(self) -> None:
        """Forget all of them without a finish."""
        self._abandoned = True
        for running in list(self._running.values()):
            self._forget(running)

    # --- as the engine's sink (see `ports.Sink`)

    @property
    def open(self) -> bool:
        """Whether chunks are taken now."""
        return not self._paused

    def put(self, chunk: Chunk) -> None:
        """A chunk that is not its request's last, beside the engine's iterator."""
        running = self._running.get(chunk.id)
        if running is not None and running.attempt == chunk.attempt:
            self._deliver(running.pull, chunk)

    # ---

    @property
    def idle(self) -> bool:
        """Whether the engine runs nothing, not even what has had its finish."""
        return not self._pulls

    # --- one pull

    def _takes(self, work: Work) -> bool:
        there = self._running.get(work.id)
        if there is None and self._static and work.credits is not None:
            words = "this engine runs batches, which go at one pace: `credits` are for continuous engines"
            self._outbox.put(Chunk(id=work.id, index=0, attempt=work.attempt, finish=finish("rejected", words)))
            return False
        if there is None:
            return True
        if there.attempt == work.attempt:
            log.warning("request %s already runs here; the second run is ignored", work.id)
        else:
            words = f"attempt {there.attempt} of this request still runs here"
            self._outbox.put(Chunk(id=work.id, index=0, attempt=work.attempt, finish=finish("rejected", words)))
        return False

    async def _draw(self, pull: Pull, works: Sequence[Work], plan: Any, before: Pull | None) -> None:
        iterator: Any = None
        try:
            if before is not None and before.task is not None and not before.task.done():
                await asyncio.wait({before.task})  # one batch at a time: the last one may still be tidying up
            while self._blocked(pull) or (pull.live and self._held):
                await pull.asleep()
            works = [work for work in works if work.id in pull.live]
            if not works:
                return
            pull.begun = True
            iterator = self._engine.run_batch(works, plan) if self._static else self._engine.run(works[0], plan)
            async for item in iterator:
                if not pull.live:
                    log.warning("the engine goes on after the finish of %s", ", ".join(work.id for work in works))
                    break
                for chunk in item if self._static else (item,):
                    self._deliver(pull, chunk)
                while self._blocked(pull):
                    await pull.asleep()
            self._fail(pull, "the engine ended this request without a finish")
        except asyncio.CancelledError:
            if not self._abandoned:
                self._fail(pull, "CancelledError: the engine gave this request up")
        except (Exception, SystemExit) as error:
            log.exception("the engine failed while it ran %s", ", ".join(pull.live))
            self._fail(pull, f"{type(error).__name__}: {error}")
        finally:
            if hasattr(iterator, "aclose"):
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    await iterator.aclose()
            del self._pulls[pull]
            self._freed()

    def _blocked(self, pull: Pull) -> bool:
        return bool(pull.live) and (self._paused or pull.out_of_credit())

    def _deliver(self, pull: Pull, chunk: Chunk) -> None:
        running = pull.live.get(chunk.id)
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

    def _fail(self, pull: Pull, error: str) -> None:
        for running in list(pull.live.values()):
            self._end(running, finish("cancelled") if running.aborted else finish("error", error))

    def _end(self, running: Running, end: Finish) -> None:
        self._outbox.put(Chunk(id=running.id, index=running.index, attempt=running.attempt, finish=end))
        self._forget(running)

    def _forget(self, running: Running) -> None:
        running.ended()
        del self._running[running.id]

    async def _cancel(self, request_id: str) -> None:
        try:
            await self._engine.cancel(request_id)
        except (Exception, SystemExit):
            log.exception("the engine could not cancel %s", request_id)

    def _take_away(self, running: Running) -> None:
        log.warning("the engine did not end %s within %g s of its cancel", running.id, ABORT_LIMIT_S)
        pull = running.pull
        self._end(
            running, finish("cancelled")
        )  # first: what does not heed a cancel may not let itself be closed either
        if pull.task is not None and not pull.live:
            pull.task.cancel()

    async def _feeding(self, running: Running, feed: Any, message: Feed, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        if self._running.get(message.id) is not running:
            return  # it has ended meanwhile
        try:
            result = feed(message.id, message.data, message.last)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            log.exception("the engine failed while it was fed %s", message.id)
            if self._running.get(message.id) is running:
                self._end(running, finish("error", f"{type(error).__name__}: {error}"))
                await self._cancel(message.id)
