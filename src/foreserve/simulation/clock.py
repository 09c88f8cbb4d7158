"""An asyncio event loop whose time is virtual: it jumps to the next timer whenever nothing is ready.

Hours pass in milliseconds, and two runs with one seed are the same to the byte: there is no operating system in it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from asyncio import base_events
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Nothing is ready, no timer is set, and the main coroutine has not ended."""


class _Timer(asyncio.TimerHandle):
    """Equal times fire in the order they were set; asyncio leaves that order to its heap."""

    _order: int = 0

    def __lt__(self, other: object) -> bool:
        assert isinstance(other, _Timer)
        return (self.when(), self._order) < (other.when(), other._order)


class _Jump:
    """Stands where a selector would wait: advances the clock by the wait instead."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Deadlock(f"at {self._loop.time():.6f} s nothing is ready and no timer is set")
        if timeout > 0:
            self._loop.advance()
        return []


class VirtualLoop(base_events.BaseEventLoop):
    """Time starts at 0 and `epoch` is what `clock.wall()` adds to it (seconds since 1970, or a trace's start).

    File descriptors, subprocesses, signals and executors raise RuntimeError: work off the loop goes through
    `clock.offload`.
    """

    virtual = True

    def __init__(self, epoch: float = 0.0) -> None:
        super().__init__()
        self.epoch = epoch
        self._now = 0.0
        self._selector = _Jump(self)
        self._clock_resolution = 1e-9
        self._order = itertools.count()

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        """As any loop's; equal times keep their order."""
        timer = _Timer(when, callback, args, self, context)
        timer._order = next(self._order)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def advance(self) -> None:
        """Jump to the next timer that has not been cancelled, exactly: a sum of waits would drift."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        self._now = max(self._now, scheduled[0].when())

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
    """As `asyncio.run`, on a virtual loop. Raises Deadlock when `main` waits for what cannot come."""
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
