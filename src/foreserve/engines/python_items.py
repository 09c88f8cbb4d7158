"""What the user's code makes of one call, item by item: a result is one item, a generator makes several.

Plain code runs in threads, each call's with context variables of its own; async code in one task of the loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing
from typing import Any

from foreserve.calling import Call
from foreserve.engines.python_code import Code
from foreserve.engines.python_threads import STOP_S, Run
from foreserve.engines.python_values import Raised, sent

_END = object()


class Calling:
    """One running call: what must be told when it is not wanted any more."""

    def __init__(self, call: Call, values: dict[str, Any]) -> None:
        self.values = values
        self.as_tensors = call.as_tensors
        self.run = Run()
        self.free = asyncio.Event()  # it is not at work
        self.task: asyncio.Task[None] | None = None  # runs async code
        self.limit: asyncio.Timeout | None = None  # of the item that is being made
        self.at_work = False  # in a thread, or in a task that did not end when it was told to
        self.placed = False  # counts among those that may be in a thread
        self.cancelled = False
        self.left = False  # the reader is gone

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return self.limit is not None and self.limit.expired()

    def cancel(self) -> None:
        """Nobody waits for it any more: async code is told so, code in a thread runs on."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()

    def sent(self, value: Any) -> Any:
        """`value` as it travels."""
        return sent(value, as_tensors=self.as_tensors)


InThread = Callable[[Calling, Callable[[], Any]], Awaitable[Any]]
"""Runs user code in a thread, in the call's own context. What it raises is returned as `Raised`."""


async def items_of(call: Calling, code: Code, in_thread: InThread) -> AsyncGenerator[Any, None]:
    """The items as they are sent, each made when it is asked for; a `Raised` is the last one."""
    if code.is_async:
        result = code.call(**call.values)
    else:
        result = await in_thread(call, lambda: code.call(**call.values))
    if inspect.isasyncgen(result) or inspect.isawaitable(result):
        items = _async_items(call, result)
    elif isinstance(result, Generator):
        items = _generator_items(call, result, in_thread)
    else:
        yield call.sent(result)
        return
    async with aclosing(items):
        async for item in items:
            yield item


async def _generator_items(
    call: Calling, generator: Generator[Any, Any, Any], in_thread: InThread
) -> AsyncGenerator[Any, None]:
    def following() -> Any:
        item = next(generator, _END)
        if call.cancelled:  # nobody waits: what the generator holds is freed here, where it runs
            generator.close()
        return item if item is _END else call.sent(item)

    try:
        while not call.cancelled and (item := await in_thread(call, following)) is not _END:
            yield item
            if isinstance(item, Raised):
                return
    finally:
        if not call.at_work:
            await in_thread(call, generator.close)


async def _async_items(call: Calling, code: Any) -> AsyncGenerator[Any, None]:
    """One task runs all of the user's async code, so that its timeouts and task groups may span items."""
    demand = asyncio.Semaphore(0)
    made: asyncio.Queue[Any] = asyncio.Queue(3)  # an item or two, and the end
    single = not inspect.isasyncgen(code)

    async def drive() -> None:
        try:
            await demand.acquire()
            if not single:
                async with aclosing(code):
                    async for item in code:
                        if call.cancelled:  # and the code did not heed it
                            return
                        made.put_nowait(call.sent(item))
                        await demand.acquire()
            else:
                made.put_nowait(call.sent(await code))
        except BaseException as error:  # an exit, too, is the end of this call alone
            if not (call.cancelled and isinstance(error, asyncio.CancelledError)):
                made.put_nowait(Raised(error))

    call.task = asyncio.get_running_loop().create_task(drive(), context=call.run.context)
    # Not the task's own last act: cancelled before its first step it runs nothing at all.
    call.task.add_done_callback(lambda _: made.put_nowait(_END))
    try:
        while True:
            demand.release()
            item = await made.get()
            if item is _END:
                return
            if single and not isinstance(item, Raised):
                # The code has ended with it: once that is seen, its end leaves in the same message as the result.
                await made.get()
            yield item
            if single or isinstance(item, Raised):
                return
    finally:
        call.task.cancel()
        try:
            if not call.task.done():
                await asyncio.wait({call.task}, timeout=STOP_S if call.late else None)
        finally:
            call.at_work = not call.task.done()
            if not call.at_work and inspect.iscoroutine(code):
                code.close()
