"""A user's own Python code as an engine: functions, generators, async functions and async generators.

The payload is `{"args": {...}}`, the keyword arguments. Every item (of a generator), or the one result, is the data of
a chunk of its own as plain values; the last chunk carries the finish and no data. An item is asked for only when the
reader asks for the next chunk.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import msgspec

from foreserve import clock
from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Work
from foreserve.engines.answer import Numbered
from foreserve.engines.failure import Failure
from foreserve.engines.python_target import load_target

log = logging.getLogger(__name__)

_END = object()


class _Raised:
    """What the user's code raised: an exception cannot cross a future when it is StopIteration."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Call:
    """One running call: what must be told when it is not wanted any more."""

    def __init__(self) -> None:
        self.context = contextvars.copy_context()
        self.task: asyncio.Task[None] | None = None  # runs async code
        self.in_thread = False
        self.placed = False  # counts among those that may be in a thread
        self.cancelled = False
        self.left = False  # the reader is gone

    def cancel(self) -> None:
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()


class PythonEngine:
    """Runs `target` (`"module:name"`, `"file.py:name"` or a callable), at most `max_running` calls side by side.

    Plain functions and generators run in threads, with context variables of their own for each call; async ones on the
    loop. Wrong arguments are `rejected`; an exception is `error`, its traceback logged and never sent.

    Code in a thread cannot be stopped: after a cancel its result is dropped and the finish, and with it the slot, comes
    when it ends. A reader that leaves before that (a host does, `runtime.requests.ABORT_LIMIT_S` after the cancel)
    abandons the thread: another takes its place, so that nobody waits behind it. Once `max_running` threads are
    abandoned at the same time, `failed()` returns: only a new process is rid of them, and calls that run are lost.
    """

    def __init__(self, target: str | Callable[..., Any], max_running: int = 8) -> None:
        if max_running < 1:
            raise ValueError(f"`max_running` is {max_running}; it must be at least 1")
        self._target = target
        self._max_running = max_running
        self._calls: dict[str, _Call] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._places = asyncio.Semaphore(max_running)
        self._abandoned: set[_Call] = set()
        self._failure = Failure()
        self._function: Callable[..., Any] | None = None
        self._signature: inspect.Signature | None = None

    async def start(self) -> EngineInfo:
        """Load the target. Raises EngineStartError when it is not there or its module fails."""
        self._function = load_target(self._target) if isinstance(self._target, str) else self._target
        try:
            self._signature = inspect.signature(self._function)
        except (TypeError, ValueError):
            self._signature = None  # some built-ins have none; their own TypeError must do
        streams = inspect.isgeneratorfunction(self._function) or inspect.isasyncgenfunction(self._function)
        return EngineInfo(
            batching="continuous",
            capacity={"slots": float(self._max_running)},
            facts={"streams": streams, "parameters": [*self._signature.parameters] if self._signature else []},
        )

    async def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """See `Engine`."""
        numbered = Numbered(work)
        if self._failure.reason is not None:
            yield numbered.chunk(finish=Finish(reason="error", error=f"the engine has failed: {self._failure.reason}"))
            return
        args = work.payload.get("args", {})
        if wrong := self._wrong_arguments(args):
            yield numbered.chunk(finish=Finish(reason="rejected", error=wrong))
            return
        call = self._calls[work.id] = _Call()
        began = clock.precise()
        items = 0
        async with aclosing(self._answers(call, args)) as answers:
            try:
                async for item in answers:
                    if call.cancelled:
                        break
                    if isinstance(item, _Raised):
                        log.error("request %s: the function raised", work.id, exc_info=item.error)
                        words = f"{type(item.error).__name__}: {item.error}"
                        yield numbered.chunk(finish=Finish(reason="error", error=words))
                        return
                    items += 1
                    yield numbered.chunk(item)
                usage = {"items": float(items), "seconds": clock.precise() - began}
                yield numbered.chunk(finish=Finish(reason="cancelled" if call.cancelled else "stop", usage=usage))
            finally:
                call.left = True
                call.cancel()
                if call.in_thread:
                    self._abandon(call, work.id)
                elif self._calls.get(work.id) is call:
                    del self._calls[work.id]

    def _wrong_arguments(self, args: Any) -> str | None:
        if not isinstance(args, dict):
            return f"`args` must be an object of keyword arguments, not {type(args).__name__}"
        if self._signature is None:
            return None
        try:
            self._signature.bind(**args)
        except TypeError as error:
            return f"wrong arguments: {error}; the function takes {self._signature}"
        return None

    async def _answers(self, call: _Call, args: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """The items as plain values; a `_Raised` is the last one."""
        function = self._function
        assert function is not None, "`start` comes first"
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            result = function(**args)
        else:
            result = await self._in_thread(call, lambda: function(**args))
        if inspect.isasyncgen(result) or inspect.isawaitable(result):
            items = self._async_items(call, result)
        elif isinstance(result, Generator):
            items = self._generator_items(call, result)
        else:
            yield _plain(result)
            return
        async with aclosing(items):
            async for item in items:
                yield item

    async def _generator_items(self, call: _Call, generator: Generator[Any, Any, Any]) -> AsyncGenerator[Any, None]:
        def following() -> Any:
            item = next(generator, _END)
            if call.cancelled:  # nobody waits: what the generator holds is freed here, where it runs
                generator.close()
            return item if item is _END else _plain(item)

        try:
            while not call.cancelled and (item := await self._in_thread(call, following)) is not _END:
                yield item
                if isinstance(item, _Raised):
                    return
        finally:
            if not call.in_thread:
                await self._in_thread(call, generator.close)

    async def _async_items(self, call: _Call, code: Any) -> AsyncGenerator[Any, None]:
        """One task runs all of the user's async code, so that its timeouts and task groups may span items."""
        demand = asyncio.Semaphore(0)
        made: asyncio.Queue[Any] = asyncio.Queue(3)  # an item or two, and the end

        async def drive() -> None:
            try:
                await demand.acquire()
                if inspect.isasyncgen(code):
                    async with aclosing(code):
                        async for item in code:
                            made.put_nowait(_plain(item))
                            await demand.acquire()
                else:
                    made.put_nowait(_plain(await code))
            except asyncio.CancelledError as error:
                if not call.cancelled:
                    made.put_nowait(_Raised(error))
            except Exception as error:
                made.put_nowait(_Raised(error))

        call.task = asyncio.get_running_loop().create_task(drive(), context=call.context)
        # Not the task's own last act: cancelled before its first step it runs nothing at all.
        call.task.add_done_callback(lambda _: made.put_nowait(_END))
        try:
            while True:
                demand.release()
                item = await made.get()
                if item is _END:
                    return
                yield item
                if isinstance(item, _Raised):
                    return
        finally:
            call.task.cancel()
            await asyncio.gather(call.task, return_exceptions=True)
            if inspect.iscoroutine(code):
                code.close()

    async def _in_thread(self, call: _Call, fn: Callable[[], Any]) -> Any:
        """Run user code in the pool, in the call's own context. What it raises is returned as `_Raised`."""

        def guarded() -> Any:
            try:
                return call.context.run(fn)
            except BaseException as error:
                return _Raised(error)

        loop = asyncio.get_running_loop()
        if getattr(loop, "virtual", False):
            return await clock.offload(guarded)
        # The places bound what runs; the pool has a thread for each and one for each that may be abandoned.
        await self._places.acquire()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(2 * self._max_running, thread_name_prefix="function")
        call.in_thread = call.placed = True
        future = self._pool.submit(guarded)
        future.add_done_callback(lambda _: _on_loop(loop, self._left_thread, call))
        return await asyncio.wrap_future(future)

    def _left_thread(self, call: _Call) -> None:
        """A thread is free again; for a reader that left meanwhile, this is when its slot comes back."""
        call.in_thread = False
        self._abandoned.discard(call)
        self._give_place_back(call)
        if call.left:
            for request_id in [id for id, other in self._calls.items() if other is call]:
                del self._calls[request_id]

    def _give_place_back(self, call: _Call) -> None:
        if call.placed:
            call.placed = False
            self._places.release()

    def _abandon(self, call: _Call, request_id: str) -> None:
        """Its reader is gone and its thread is not: let another run in its place, while threads are left."""
        self._abandoned.add(call)
        stuck = len(self._abandoned)
        log.warning("request %s: its reader is gone and its code runs on, as %d now do", request_id, stuck)
        if stuck <= self._max_running:
            self._give_place_back(call)
        if stuck >= self._max_running:
            words = f"the last of {request_id}" if stuck > 1 else f"that of {request_id}"
            self._failure.say(f"{stuck} calls did not end when they were cancelled, {words}")

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
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _plain(value: Any) -> Any:
    """`value` as what can cross a process: plain values and bytes; arrays become lists. `_Raised` when it cannot."""
    if isinstance(value, _Raised):
        return value
    try:
        return msgspec.to_builtins(value, builtin_types=(bytes, bytearray), enc_hook=_array)
    except Exception as error:
        return _Raised(TypeError(f"a result of type {type(value).__name__} cannot be sent: {error}"))


def _array(value: Any) -> Any:
    """Arrays and their scalars (numpy, torch) as lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise NotImplementedError(f"{type(value).__name__} is no plain value; return numbers, text, lists or dicts")


def _on_loop(loop: asyncio.AbstractEventLoop, fn: Callable[[_Call], None], call: _Call) -> None:
    try:
        loop.call_soon_threadsafe(fn, call)
    except RuntimeError:
        log.debug("the loop had closed before a function ended")
