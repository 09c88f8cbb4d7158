"""An asyncio event loop whose time is virtual: it jumps to the next timer whenever nothing is ready.

Hours pass in milliseconds, and two runs with one seed are the same to the byte: there is no operating system in it.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import base_events
from collections import deque
from collections.abc import Coroutine
from contextvars import copy_context
from typing import Any, Final, NoReturn, TypeVar

T = TypeVar("T")


MOST_CANCELLED: Final = 256
"""Cancelled timers that may stand among the others however few those are."""


MOST_TURNS: Final = 1_000_000
"""Turns of the loop in one moment: a turn takes all that is ready, however much, so no honest work needs as many."""


class Deadlock(RuntimeError):
    """Nothing is ready, no timer is set, and the main coroutine has not ended."""


class Livelock(RuntimeError):
    """Something is always ready again, and time stands still."""


class _Timer(asyncio.TimerHandle):
    """Made once or twice for each simulated request, so that it does no more than it must."""

    __slots__ = ()

    def __init__(self, when: float, callback: Any, args: tuple[Any, ...], loop: VirtualLoop, context: Any) -> None:
        # As the classes above would, without asking each time whether asyncio is to debug.
        self._when = when
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = copy_context() if context is None else context
        self._cancelled = False
        self._repr = self._source_traceback = None
        self._scheduled = True

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            # What it would have called may hold much, and a cancelled timer can stand for long.
            self._callback = None
            self._args = ()
            if self._scheduled:
                self._loop.timer_cancelled()


class VirtualLoop(base_events.BaseEventLoop):
    """Time starts at 0 and `epoch` is what `clock.wall()` adds to it (seconds since 1970, or a trace's start).

    File descriptors, subprocesses, signals and executors raise RuntimeError: work off the loop goes through
    `clock.offload`. Cancelled timers never outnumber the others by much, however far away they are.
    """

    virtual = True

    def __init__(self, epoch: float = 0.0) -> None:
        super().__init__()
        self.epoch = epoch
        self._now = 0.0
        # Equal times fire in the order they were set; asyncio leaves that order to its heap. Tuples are compared by
        # the interpreter itself: timers would be compared in Python, several times for each one.
        self._timers: list[tuple[float, int, _Timer]] = []
        self._cancelled = 0
        self._order = 0
        self._turns = 0
        """Since time moved last."""

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        """As any loop's; equal times keep their order."""
        timer = _Timer(when, callback, args, self, context)
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, timer))
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        """As any loop's."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def timer_cancelled(self) -> None:
        """One of those that wait has been cancelled: they are swept out once most are."""
        self._cancelled += 1
        if self._cancelled > MOST_CANCELLED and 2 * self._cancelled > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2]._cancelled]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def timers(self) -> list[asyncio.TimerHandle]:
        """Those that are set, the next one first."""
        return [entry[2] for entry in sorted(self._timers, key=lambda entry: entry[:2]) if not entry[2]._cancelled]

    def _run_once(self) -> None:
        """Everything that is ready, or else what the next timer brings; asyncio calls this over and over."""
        ready: deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        self._turns += 1
        if self._turns > MOST_TURNS:
            self._turns = 0  # what ends now may take its turns
            raise Livelock(f"at {self._now:.6f} s time stands still: {MOST_TURNS} turns, and {self._next_words()} next")
        if not ready:
            # To the next timer that has not been cancelled, exactly: a sum of waits would drift.
            while self._timers and self._timers[0][2]._cancelled:
                self._pop()
            if not self._timers:
                raise Deadlock(f"at {self._now:.6f} s nothing is ready and no timer is set")
            if self._timers[0][0] > self._now:
                self._now = self._timers[0][0]
                self._turns = 0
        while self._timers and self._timers[0][0] <= self._now:
            ready.append(self._pop())
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _next_words(self) -> str:
        """What keeps the loop busy, for people."""
        ready: deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        return repr(ready[0] if ready else self._timers[0][2] if self._timers else None)

    def _pop(self) -> _Timer:
        timer = heapq.heappop(self._timers)[2]
        timer._scheduled = False
        self._cancelled -= timer._cancelled
        return timer

    def close(self) -> None:
        """As any loop's."""
        super().close()
        self._timers.clear()

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nothing can wait in another thread."""

    def _refuse(self, what: str) -> NoReturn:
        raise RuntimeError(f"the virtual loop has no {what}; use clock.offload for work off the loop")

    def add_reader(self, *args: Any, **kwargs: Any) -> NoReturn:  # type: ignore[override]
        self._refuse("file descriptors")

    def add_writer(self, *args: Any, **kwargs: Any) -> NoReturn:  # type: ignore[override]
        self._refuse("file descriptors")

    def add_signal_handler(self, *args: Any, **kwargs: Any) -> NoReturn:  # type: ignore[override]
        self._refuse("signals")

    def run_in_executor(self, *args: Any, **kwargs: Any) -> NoReturn:  # type: ignore[override]
        self._refuse("executors")

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> NoReturn:  # type: ignore[override]
        self._refuse("threads")

    async def create_connection(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("sockets")

    async def create_server(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("sockets")

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("subprocesses")

    async def subprocess_shell(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("subprocesses")

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""


def run(main: Coroutine[Any, Any, T], *, epoch: float = 0.0) -> T:
    """As `asyncio.run`, on a virtual loop. Raises Deadlock when `main` waits for what cannot come.

    Raises Livelock when time stands still for a million turns.
    """
    loop = VirtualLoop(epoch)
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        try:
            for task in asyncio.all_tasks(loop):
                task.cancel()
                loop.run_until_complete(asyncio.wait([task]))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
