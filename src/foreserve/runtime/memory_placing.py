"""Who asks for a copy on a device of what he holds in the host's memory, or has one of an owner before us."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from foreserve.errors import EngineStartError
from foreserve.runtime.memory_copies import Copies
from foreserve.runtime.memory_hosted import Hosted
from foreserve.runtime.memory_leases import Leases
from foreserve.runtime.memory_line import Line
from foreserve.runtime.memory_messages import AdoptCopy, Place, Refused, Waits
from foreserve.runtime.memory_places import Places
from foreserve.runtime.memory_source import Source

log = logging.getLogger(__name__)


class Placing:
    """What a copy is to be of may still be loaded, after an owner's death: then it is waited for."""

    def __init__(self, leases: Leases, hosted: Hosted, places: Places) -> None:
        self._leases = leases
        self._hosted = hosted
        self._places = places
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Nobody waits any more."""
        for task in self._tasks:
            task.cancel()

    def place(self, line: Line, message: Place) -> None:
        """Lease a copy, or refuse it."""
        ready = self._hosted.ready(line, message.of)
        if ready.done():
            self._place(line, message)
            return
        lease = self._leases.make(line, message.number, False, _giving_up(ready), copy=True)
        self._spawn(self._place_later(line, message, lease, ready))

    async def _place_later(self, line: Line, message: Place, lease: int, ready: asyncio.Future[None]) -> None:
        await ready
        if line.leases.get(message.number) == lease:
            self._place(line, message)

    def _place(self, line: Line, message: Place) -> None:
        try:
            copies = self._places.on(message.device)
            keys, size, source = self._hosted.original(line, message.of)
        except (EngineStartError, OSError) as error:
            self._leases.release(line, message.number)
            line.send(Refused(message.number, str(error)))
            return
        lease = self._leases.make(line, message.number, False, partial(self._places.release, copies), copy=True)
        if reason := self._places.place(copies, lease, keys, size, source):
            log.warning("%s", reason)
            line.send(Waits(message.number, reason))

    def adopt(self, line: Line, message: AdoptCopy, fd: int) -> None:
        """Take over a copy; `fd` stays the caller's. Raises OSError."""
        ours = os.dup(fd)  # before anything is noted that would have to be taken back
        ready = self._hosted.ready(line, message.of)
        lease = self._leases.make(line, message.number, True, _giving_up(ready), copy=True)
        task = self._spawn(self._adopt(line, message, ours, lease, ready))
        task.add_done_callback(lambda _: os.close(ours))

    async def _adopt(self, line: Line, message: AdoptCopy, fd: int, lease: int, ready: asyncio.Future[None]) -> None:
        def made(copies: Copies, size: int) -> tuple[int, Sequence[str], Source]:
            if line.leases.get(message.number) != lease:
                raise EngineStartError("it was let go of meanwhile")
            keys, _, source = self._hosted.original(line, message.of)
            try:
                begin, end = source.data
                if size != (wanted := copies.takes(end - begin)):
                    raise EngineStartError(f"it has {size} bytes, and a copy of what is held has {wanted}")
            except BaseException:
                source.close()
                raise
            over = partial(self._places.release, copies)
            return self._leases.make(line, message.number, True, over, copy=True), keys, source

        try:
            await ready
            copies = self._places.on(message.device)
            await self._places.adopt(copies, fd, message.size, message.restore_s, partial(made, copies))
        except (EngineStartError, OSError) as error:
            if line.leases.get(message.number) == lease:
                self._leases.release(line, message.number)
            log.warning("what a client has on %s is not taken over: %s", message.device, error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _giving_up(ready: asyncio.Future[None]) -> Callable[[int], None]:
    def give_up(_: int) -> None:
        ready.cancel()

    return give_up
