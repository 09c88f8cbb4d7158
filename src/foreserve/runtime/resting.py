"""An engine that is idle lets what it has on a device go, and has it again before it is asked for anything.

Its weights, where they were declared; or by its own means, where it has `rest` and `wake` (see `Engine`).

What it holds there counts as held no more, so it is the first that goes when others want room, or after its time; its
process stays, with all that a start would have to make anew. While it rests no request reaches the engine, so nothing
looks at weights that are not there.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Literal, TypeVar

from foreserve import clock
from foreserve.messages import FromWorker, Rested, Woke
from foreserve.runtime import leases
from foreserve.runtime.placed import Placed
from foreserve.runtime.waking import wake

log = logging.getLogger(__name__)

T = TypeVar("T")


class Resting:
    """Of one engine, whose weights were begun in the `leases.scope` that this is used in.

    `hold(True)` has to keep requests from the engine until `hold(False)`. `tell` is for the gateway.
    """

    def __init__(
        self,
        rest_s: float,
        hold: Callable[[bool], None],
        spawn: Callable[[Coroutine[Any, Any, None]], Any],
        tell: Callable[[FromWorker], None],
        failed: Callable[[str], Coroutine[Any, Any, None]],
        engine: Any = None,
    ) -> None:
        """`engine` is given where it rests by its own means."""
        self._rest_s = rest_s
        self._hold = hold
        self._spawn = spawn
        self._tell = tell
        self._failed = failed
        self._state: Literal["awake", "going", "resting", "waking"] = "awake"
        self._engine = engine
        self._placed: list[Placed] = []
        self._idle_since: float | None = None
        self._tried = self._wanted = False

    def look(self, idle: bool, now: float) -> None:
        """Called every second or so; `now` in seconds. Goes to rest after `rest_s` of idleness, once in each."""
        if not idle:
            self._idle_since, self._tried = None, False
        elif self._idle_since is None:
            self._idle_since = now
        elif self._state == "awake" and not self._tried and now - self._idle_since >= self._rest_s:
            self._tried = True
            self._state, self._wanted = "going", False
            self._hold(True)
            self._spawn(self._go())

    def wanted(self) -> None:
        """A request has come, and waits if this rests."""
        self._wanted = True
        if self._state == "resting":
            self._state = "waking"
            self._spawn(self._wake())

    async def _go(self) -> None:
        try:
            rests = await self._let_go()
        except Exception as error:  # whatever it is: requests are held, and would be for ever
            await self._failed(f"its weights could not be given back: {error}")
            return
        if not rests:
            self._state = "awake"
            self._hold(False)
            return
        self._state = "resting"
        self._tell(Rested())
        if self._wanted:
            self.wanted()

    async def _wake(self) -> None:
        try:
            began = clock.precise()
            copied = await self._have_again()
        except Exception as error:
            await self._failed(str(error) or f"its weights could not be had again: {type(error).__name__}")
            return
        self._state, self._idle_since, self._tried = "awake", None, False
        self._tell(Woke(clock.precise() - began, copied))
        self._hold(False)

    async def _let_go(self) -> bool:
        if self._engine is not None:
            return bool(await self._engine.rest())
        self._placed = await _aside(leases.rest)
        return bool(self._placed)

    async def _have_again(self) -> bool:
        """Whether it had to be copied anew."""
        if self._engine is not None:
            await self._engine.wake()
            return True
        now = asyncio.get_running_loop().time
        return await _aside(lambda: wake(self._placed, now))


async def _aside(fn: Callable[[], T]) -> T:
    """In a thread that nobody waits for at the process's end: it may wait for room that never comes."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    context = copy_context()

    def put(result: T | None, error: BaseException | None) -> None:
        if not done.done():
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = context.run(fn)
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(put, result, error)

    threading.Thread(target=run, name="foreserve-resting", daemon=True).start()
    return await done
