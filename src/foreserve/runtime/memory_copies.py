"""Copies of weights on one device, for the entries of a table of its own: made out of the host's copy, given back.

They are the first stage of exit: the host's copy stays behind, so that having one again costs its way to the device and
nothing else. One lane for each device, since copies that run against each other are all slower; its threads fill pinned
chunks side by side.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from foreserve import clock
from foreserve.errors import EngineStartError
from foreserve.runtime.device import Allocation, DeviceMemory, NoRoom, open_memory
from foreserve.runtime.memory_entry import Effect, Entry, State
from foreserve.runtime.memory_messages import MOST_MARKS, SOURCE_CHARACTERS, Held
from foreserve.runtime.memory_source import Source
from foreserve.runtime.memory_sources import to_its_end
from foreserve.runtime.memory_store import Kept, Store
from foreserve.runtime.memory_table import Table

log = logging.getLogger(__name__)

AGAIN_S: Final = 0.5
TRIES: Final = 20
"""How often, and how far apart, memory is asked for that others than we have taken."""

T = TypeVar("T")


class _Kept(Kept):
    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.reading: Source | None = None  # by a load, which closes it; it may have been told to stop
        self.marks: dict[int, None] = {}
        self.allocation: Allocation | None = None

    def close(self) -> None:
        if self.source is not self.reading:
            self.source.close()


class Copies(Store[_Kept]):
    """Of the entries of `table`, on the device with this `identity`, which is opened when it is first needed.

    `do(effects)` carries out all that follows from what is told to it. Copies are written by `threads` threads,
    in chunks of `chunk_bytes`.
    """

    def __init__(
        self,
        identity: str,
        table: Table,
        do: Callable[[Iterable[Effect]], None],
        threads: int,
        chunk_bytes: int,
    ) -> None:
        super().__init__(table, do)
        self.identity = identity
        self._chunk_bytes = chunk_bytes
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "foreserve-device")
        self._lane = asyncio.Semaphore(1)
        self._device: DeviceMemory | None = None
        self.uploads = 0

    def close(self) -> None:
        """Stop everything and give all memory back."""
        super().close()
        for kept in self._kept.values():
            kept.close()
            if kept.allocation is not None:
                kept.allocation.free()
                kept.allocation = None
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- what is known

    def name(self, entry: Entry, source: Source) -> None:
        """`entry` is asked for, by who has `source`, which is ours now."""
        kept = self._kept.setdefault(entry.number, _Kept(source))
        others = [each for each in kept.marks if each not in source.marks]
        kept.marks = dict.fromkeys([*others, *source.marks][-MOST_MARKS:])
        if kept.source is source:
            return
        if entry.waits or entry.state is State.EVICTING:  # it is still to be made, and may be gone from elsewhere
            kept.source, source = source, kept.source
        if source is not kept.reading:
            source.close()

    def find(self, entry: Entry) -> Allocation | None:
        """The copy, while it is there."""
        return self._kept[entry.number].allocation

    async def adopted(self, fd: int, size: int) -> Allocation:
        """A copy that a worker has. Raises DeviceError where it is none."""
        async with self._lane:
            return await self._run(lambda: self._opened().adopt(fd, size))

    def takes(self, size: int) -> int:
        """The bytes of a copy of so many, on this device, which is open. Raises DeviceError."""
        return self._opened().takes(size)

    def adopt(self, entry: Entry, allocation: Allocation) -> None:
        """This is its copy, which an earlier owner has made."""
        kept = self._kept[entry.number]
        kept.allocation = allocation
        kept.source.close()

    def held(self, entry: Entry) -> Held:
        """What there is to tell of it."""
        source = self._kept[entry.number].source
        return Held(
            names=source.names,
            source=source.source[-SOURCE_CHARACTERS:],
            kind=source.kind,
            state="waiting" if entry.waits else entry.state.value,
            bytes=entry.bytes,
            references=len(entry.leases),
            restore_s=entry.restore_s,
            bytes_read=entry.bytes_read,
            hits=entry.hits,
            sha256=source.sha256,
            device=self.identity,
            marks=tuple(self._kept[entry.number].marks),
        )

    # --- what is decided

    async def _load(self, entry: Entry, kept: _Kept) -> None:
        source = kept.reading = kept.source
        allocation: Allocation | None = None
        try:
            async with self._lane:
                began = clock.precise()
                self.uploads += 1
                begin, end = source.data
                allocation = await self._allocated(end - begin)
                # Devices give out whole pages of theirs, so it may be more than was thought.
                await self._room(entry, kept, allocation.size)
                await self._write(allocation, source, begin, end)
                await self._run(allocation.finish)
                if not source.current:
                    raise EngineStartError("it has changed while it was copied")
                seconds = clock.precise() - began
        except BaseException as error:
            if allocation is not None:
                await self._run(allocation.free)
            if isinstance(error, asyncio.CancelledError):
                raise
            self._failed(entry, source, error)
            return
        finally:
            source.close()
            kept.reading = None
        kept.allocation = allocation
        log.info("%s: %d bytes on %s in %.3f s", source.source, allocation.size, self.identity, seconds)
        self._do(self.table.loaded(entry, allocation.size, seconds, end - begin, clock.now()))

    def _failed(self, entry: Entry, source: Source, error: BaseException) -> None:
        if not isinstance(error, EngineStartError):
            log.error("%s could not be copied to %s", source.source, self.identity, exc_info=error)
            error = EngineStartError(f"{type(error).__name__}: {error}")
        words = f"{source.source} cannot be copied to {self.identity}: {error}"
        self._do(self.table.failed(entry, words, clock.now()))

    async def _allocated(self, size: int) -> Allocation:
        """Memory of the device. What is idle there goes for it; what others have taken is waited for, a while."""
        for _ in range(TRIES):
            try:
                return await self._run(lambda: self._opened().allocate(size))
            except NoRoom as error:
                reason = error
            self._do(self.table.shed(size))
            await asyncio.sleep(AGAIN_S)
        raise reason

    def _opened(self) -> DeviceMemory:
        """In a thread: a driver takes its time. One at a time, by the lane."""
        if self._device is None:
            self._device = open_memory(self.identity)
        return self._device

    async def _write(self, allocation: Allocation, source: Source, begin: int, end: int) -> None:
        left = iter(range(begin, end, self._chunk_bytes))

        async def writer() -> None:
            for at in left:
                to = min(at + self._chunk_bytes, end)
                await self._run(lambda at=at, to=to: allocation.write(at - begin, source.fd, at, to))  # type: ignore[misc]

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._threads):
                    group.create_task(writer())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _free(self, kept: _Kept) -> None:
        allocation, kept.allocation = kept.allocation, None
        if allocation is not None:
            self.evictions += 1
            log.info("%s: %d bytes on %s are given back", kept.source.source, allocation.size, self.identity)
            await self._run(allocation.free)

    async def _run(self, fn: Callable[[], T]) -> T:
        return await to_its_end(asyncio.get_running_loop().run_in_executor(self._pool, fn))
