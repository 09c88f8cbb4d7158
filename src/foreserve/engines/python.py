"""A user's own Python code as an engine: functions, generators, async functions and async generators, or a class's.

The payload is a `calling.Call`. Every item (of a generator), or the one result, is the data of a chunk of its own, as
plain values or as tensors; the last chunk carries the finish and no data. An item is asked for only when the reader
asks for the next chunk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from foreserve import clock
from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Work
from foreserve.engines.answer import Numbered
from foreserve.engines.failure import Failure
from foreserve.engines.python_code import Code, load_code
from foreserve.engines.python_fed import Feeding
from foreserve.engines.python_items import Calling, items_of
from foreserve.engines.python_threads import STOP_S, Threads
from foreserve.engines.python_values import Raised

log = logging.getLogger(__name__)


class PythonEngine:
    """Runs `target` (`"module:name"`, `"file.py:name"` or a callable), at most `max_running` calls side by side.

    Plain functions and generators run in threads, with context variables of their own for each call; async ones on the
    loop. Wrong arguments are `rejected`; an exception is `error`, its traceback logged and never sent. `weights` names
    what a class is made with, one name or a list of them.

    A call that has run for `timeout_s` (the time in which its reader asks for no item left out) ends with an error, and
    its code is told to stop. A cancel does not stop code in a thread: its result is dropped and the finish, and with it
    the slot, comes when it ends. A reader that leaves before that (a host does, `runtime.requests.ABORT_LIMIT_S` after
    the cancel) abandons the thread, as does a time-out that its code does not heed: another takes its place, so that
    nobody waits behind it. So is async code left behind that does not heed a time-out. Once `max_running` calls are
    abandoned at the same time, `failed()` returns: only a new process is rid of them, and calls that run are lost.
    """

    def __init__(
        self,
        target: str | Callable[..., Any],
        max_running: int = 8,
        weights: str | Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        if max_running < 1:
            raise ValueError(f"`max_running` is {max_running}; it must be at least 1")
        self._target = target
        self._max_running = max_running
        self._weights = weights
        self._timeout_s = timeout_s
        self._calls: dict[str, Calling] = {}
        self._threads = Threads(max_running)
        self._places = asyncio.Semaphore(max_running)
        self._abandoned: set[Calling] = set()
        self._failure = Failure()
        self._feeding = Feeding()
        self._code: Code | None = None

    async def start(self) -> EngineInfo:
        """Load the target. Raises EngineStartError when it is not there or its module or class fails."""
        self._code = await load_code(self._target, self._weights)
        return EngineInfo(batching="continuous", capacity={"slots": float(self._max_running)}, facts=self._code.facts())

    async def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """See `Engine`."""
        numbered = Numbered(work)
        if self._failure.reason is not None:
            yield numbered.chunk(finish=Finish(reason="error", error=f"the engine has failed: {self._failure.reason}"))
            return
        assert self._code is not None, "`start` comes first"
        found = self._code.values(work.payload)
        if isinstance(found, Finish):
            yield numbered.chunk(finish=found)
            return
        found[1].update(self._feeding.begin(work.id, found[0].fed))
        call = self._calls[work.id] = Calling(*found)
        began = clock.precise()
        items = 0
        async with aclosing(items_of(call, self._code, self._in_thread)) as answers:
            try:
                async for item in self._in_time(call, answers):
                    if call.cancelled:
                        break
                    if isinstance(item, Raised):
                        log.error("request %s: the function raised", work.id, exc_info=item.error)
                        yield numbered.chunk(finish=Finish(reason="error", error=item.words))
                        return
                    items += 1
                    yield numbered.chunk(item)
                usage = {"items": float(items), "seconds": clock.precise() - began}
                yield numbered.chunk(finish=Finish(reason="cancelled" if call.cancelled else "stop", usage=usage))
            except TimeoutError:
                log.warning("request %s: %s", work.id, too_late(self._timeout_s))
                yield numbered.chunk(finish=Finish(reason="error", error=too_late(self._timeout_s)))
            finally:
                call.left = True
                call.cancel()
                self._feeding.end(work.id)
                if call.at_work and call.task is not None:
                    call.task.add_done_callback(lambda _: self._ended(call))
                if call.at_work and call.late:
                    await self._told_to_stop(call)
                if call.at_work:
                    self._abandon(call, work.id)
                elif self._calls.get(work.id) is call:
                    del self._calls[work.id]

    async def _in_time(self, call: Calling, answers: AsyncGenerator[Any, None]) -> AsyncIterator[Any]:
        """The items, while making them has not taken `timeout_s` together. Raises TimeoutError."""
        left = self._timeout_s
        while True:
            began = clock.precise()
            try:
                async with asyncio.timeout(left) as call.limit:
                    item = await anext(answers)
            except StopAsyncIteration:
                return
            if left is not None:
                left = max(0.0, left - (clock.precise() - began))
            yield item

    async def _told_to_stop(self, call: Calling) -> None:
        """Its code runs on after its time: told to stop, and waited for a moment."""
        call.run.stop()
        try:
            async with asyncio.timeout(STOP_S):
                await call.free.wait()
        except TimeoutError:
            pass

    async def _in_thread(self, call: Calling, fn: Callable[[], Any]) -> Any:
        """Run user code in the pool, in the call's own context. What it raises is returned as `Raised`."""
        if getattr(asyncio.get_running_loop(), "virtual", False):
            return await clock.offload(lambda: call.run(fn))
        # The places bound what runs; the pool has a thread for each and one for each that may be abandoned.
        await self._places.acquire()
        call.at_work = call.placed = True
        call.free.clear()
        return await asyncio.wrap_future(self._threads.submit(call.run, fn, lambda: self._ended(call)))

    def _ended(self, call: Calling) -> None:
        """It is not at work any more; for a reader that left meanwhile, this is when its slot comes back."""
        call.at_work = False
        call.free.set()
        self._abandoned.discard(call)
        self._give_place_back(call)
        if call.left:
            for request_id in [id for id, other in self._calls.items() if other is call]:
                del self._calls[request_id]

    def _give_place_back(self, call: Calling) -> None:
        if call.placed:
            call.placed = False
            self._places.release()

    def _abandon(self, call: Calling, request_id: str) -> None:
        """Its reader is gone and its thread is not: let another run in its place, while threads are left."""
        self._abandoned.add(call)
        stuck = len(self._abandoned)
        log.warning("request %s has ended and its code cannot be stopped: threads left behind: %d", request_id, stuck)
        if stuck <= self._max_running:
            self._give_place_back(call)
        if stuck >= self._max_running:
            words = f"the last of {request_id}" if stuck > 1 else f"that of {request_id}"
            self._failure.say(f"{stuck} calls did not end when they were told to, {words}")

    def feed(self, request_id: str, data: Any, last: bool) -> None:
        """See `Engine`. `data` is an `Items`."""
        self._feeding.take(request_id, data)

    async def failed(self) -> str:
        """See `Engine`."""
        return await self._failure.said()

    async def cancel(self, request_id: str) -> None:
        """See `Engine`."""
        if call := self._calls.get(request_id):
            call.cancel()

    async def load(self) -> EngineLoad:
        """See `Engine`. A cancelled function that still runs is counted."""
        return EngineLoad(running=len(self._calls), waiting=0)

    async def close(self) -> None:
        """Cancel what runs. Threads that do not end are left to the end of the process."""
        for call in self._calls.values():
            call.cancel()
        self._threads.close()


def too_late(timeout_s: float | None) -> str:
    """What a call is told that has run for too long."""
    return f"the call ran longer than its `timeout_s`, {timeout_s:g} s"
