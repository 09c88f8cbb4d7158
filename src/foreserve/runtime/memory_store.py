"""What is behind the entries of a table: carries out what the table decides on one, and tells it what became of that.

`memory_images` keeps images in the host's memory so, `memory_copies` copies on a device.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

from foreserve import clock
from foreserve.errors import EngineStartError
from foreserve.runtime.memory_entry import Deny, Effect, Entry, Evict, Grant, Load, Stop
from foreserve.runtime.memory_table import Table


class Kept:
    """What is known of one entry."""

    def __init__(self) -> None:
        self.load: asyncio.Task[None] | None = None
        self.room: asyncio.Future[None] | None = None

    def close(self) -> None:
        """Its entry is no more."""


K = TypeVar("K", bound=Kept)


class Store(ABC, Generic[K]):
    """Of the entries of `table`; `do(effects)` carries out all that follows from what is told to it."""

    def __init__(self, table: Table, do: Callable[[Iterable[Effect]], None]) -> None:
        self.table = table
        self._do = do
        self._kept: dict[int, K] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self.evictions = 0

    def close(self) -> None:
        """Stop everything."""
        self._closed = True
        for task in self._tasks:
            task.cancel()

    def forget(self) -> None:
        """Let go of what is known of entries that are no more."""
        for number in self._kept.keys() - self.table.entries.keys():
            self._kept.pop(number).close()

    def carry_out(self, effect: Load | Stop | Grant | Deny | Evict) -> None:
        """Do it, or begin to."""
        kept = self._kept[effect.entry.number]
        match effect:
            case Load(entry):
                kept.load = self._spawn(self._load(entry, kept))
                # Here and not within: a task that is cancelled before its first step never gets to what is within.
                kept.load.add_done_callback(lambda task: self._gone(entry) if task.cancelled() else None)
            case Stop() if kept.load is not None:
                kept.load.cancel()
            case Grant() if kept.room is not None and not kept.room.done():
                kept.room.set_result(None)
            case Deny(_, reason) if kept.room is not None and not kept.room.done():
                kept.room.set_exception(EngineStartError(reason))
            case Evict(entry):
                self._spawn(self._evict(entry, kept))

    @abstractmethod
    async def _load(self, entry: Entry, kept: K) -> None:
        """Tells the table that it is `loaded` or `failed`. When cancelled: frees what it has."""

    @abstractmethod
    async def _free(self, kept: K) -> None:
        """Give its memory back."""

    async def _evict(self, entry: Entry, kept: K) -> None:
        await self._free(kept)
        self._gone(entry)

    async def _room(self, entry: Entry, kept: K, size: int) -> None:
        """Have `size` bytes in all kept for a load. Raises EngineStartError where there is no such room."""
        kept.room = self._loop.create_future()
        self._do(self.table.resize(entry, size, clock.now()))
        await kept.room

    def _gone(self, entry: Entry) -> None:
        if not self._closed:
            self._do(self.table.gone(entry, clock.now()))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
