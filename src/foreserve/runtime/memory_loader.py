"""Brings weights into this machine's memory: one load of files at a time, by a few threads, in chunks.

Loads that run against each other for the same disk are all slower than one after the other, so files have one lane for
all functions. What is fetched or made by a user's code has a lane of its own, since it may take long and needs no disk.
Every `load` can be cancelled between two chunks.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeVar

from foreserve import clock
from foreserve.core import WeightsRef
from foreserve.errors import EngineStartError
from foreserve.runtime.memory_digests import Stat
from foreserve.runtime.memory_sources import Room, fetch, memory, run_loader, seal, to_its_end
from foreserve.runtime.safetensors import read

SLOW_AT_ONCE: Final = 2
"""Fetches and loaders of users that run side by side."""

_SCRATCH_BYTES: Final = 256 * 1024
"""What a thread reads into. Small enough to stay in the processor's cache: only the page cache is to be filled."""

T = TypeVar("T")


class Image(NamedTuple):
    """Weights that are in memory: a descriptor for reading alone, and what it took."""

    fd: int
    size: int
    sha256: str | None
    bytes_read: int
    seconds: float


class Loader:
    """Loads with at most `readers` threads, in chunks of `chunk_bytes`; addresses must begin with one of `sources`."""

    def __init__(self, readers: int, chunk_bytes: int, sources: Sequence[str] = ()) -> None:
        self._readers = readers
        self._chunk_bytes = chunk_bytes
        self._sources = sources
        self._files = asyncio.Semaphore(1)
        self._slow = asyncio.Semaphore(SLOW_AT_ONCE)
        self._pool = ThreadPoolExecutor(readers + 1, "foreserve-read")
        self._low = ThreadPoolExecutor(1, "foreserve-digest", initializer=_yield_processor)
        self.bytes_read = 0
        """Of all loads."""

    def close(self) -> None:
        """Wait for no thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._low.shutdown(wait=False, cancel_futures=True)

    async def load(self, ref: WeightsRef, python: str, room: Room, known: str | None = None) -> Image:
        """The image of `ref`. `known` is the digest of the file as it stands, where it was learned.

        `room` is asked for what was not known before. Raises EngineStartError in words: what cannot be opened, read or
        made, is no safetensors image, changed meanwhile, or has another digest than `ref` wants.
        """
        async with self._files if ref.kind == "file" else self._slow:
            began = clock.precise()
            if ref.kind == "file":
                fd, sha256, size = await self._file(ref, known)
            else:
                fd, sha256, size = await self._made(ref, python, room)
            self.bytes_read += size
            return Image(fd, size, sha256, size, clock.precise() - began)

    async def digest(self, fd: int) -> str:
        """The SHA-256 (hex) of what is open at `fd`, computed while nobody else wants the processor."""
        sha = hashlib.sha256()
        for begin, end in self._chunks(os.fstat(fd).st_size):
            await self._run(self._low, lambda begin=begin, end=end: _read(fd, begin, end, sha.update))  # type: ignore[misc]
        return sha.hexdigest()

    # --- files

    async def _file(self, ref: WeightsRef, known: str | None) -> tuple[int, str | None, int]:
        """A file is shared as it is: reading it puts it into the page cache, which every mapping of it shows."""
        fd = open_file(ref.source)  # not by a thread: when this is cancelled, what that has opened would be lost
        try:
            before = Stat.of(fd)
            await self._run(self._pool, lambda: read(fd, ref.source))
            wanted = ref.sha256 if known is None else None
            found = await self._warm(fd, before.size, digest=wanted is not None)
            if Stat.of(fd) != before:
                raise EngineStartError(f"{ref.source} has changed while it was read")
            sha256 = known or found
            _check_digest(ref, sha256)
        except BaseException:
            os.close(fd)
            raise
        return fd, sha256, before.size

    async def _warm(self, fd: int, size: int, *, digest: bool) -> str | None:
        """Read all of it, several chunks at a time; its digest follows behind, in order, where it is wanted."""
        chunks = self._chunks(size)
        left = iter(enumerate(chunks))
        done = [asyncio.Event() for _ in chunks] if digest else []

        async def reader() -> None:
            for number, (begin, end) in left:
                await self._run(self._pool, lambda begin=begin, end=end: _read(fd, begin, end))  # type: ignore[misc]
                if digest:
                    done[number].set()

        async def digester() -> str:
            sha = hashlib.sha256()
            for (begin, end), there in zip(chunks, done, strict=True):
                await there.wait()
                await self._run(self._pool, lambda begin=begin, end=end: _read(fd, begin, end, sha.update))  # type: ignore[misc]
            return sha.hexdigest()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._readers, len(chunks))):
                    group.create_task(reader())
                digests = group.create_task(digester()) if digest else None
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return digests.result() if digests is not None else None

    def _chunks(self, size: int) -> list[tuple[int, int]]:
        return [(begin, min(begin + self._chunk_bytes, size)) for begin in range(0, size, self._chunk_bytes)]

    async def _run(self, pool: ThreadPoolExecutor, fn: Callable[[], T]) -> T:
        return await to_its_end(asyncio.get_running_loop().run_in_executor(pool, fn))

    # --- what is no file

    async def _made(self, ref: WeightsRef, python: str, room: Room) -> tuple[int, str | None, int]:
        fd = memory()
        try:
            sha256 = None
            if ref.kind == "uri":
                sha256 = await fetch(ref.source, self._sources, fd, room)
            else:
                await run_loader(ref.source, python, fd, room)
            image = seal(fd)
        finally:
            os.close(fd)
        try:
            await self._run(self._pool, lambda: read(image, ref.source))
            if ref.sha256 is not None and sha256 is None:
                sha256 = await self.digest(image)
            _check_digest(ref, sha256)
        except BaseException:
            os.close(image)
            raise
        return image, sha256, os.fstat(image).st_size


def open_file(path: str) -> int:
    """A descriptor for reading it alone. Raises EngineStartError naming the path and why."""
    try:
        # Not to wait for the writer of a pipe that somebody has put there.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise EngineStartError(f"{path} cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise EngineStartError(f"{path} is no file")
    return fd


def _check_digest(ref: WeightsRef, sha256: str | None) -> None:
    if ref.sha256 is not None and sha256 != ref.sha256.lower():
        raise EngineStartError(f"{ref.source} has the SHA-256 {sha256}, not {ref.sha256}")


def _read(fd: int, begin: int, end: int, take: Callable[[Any], object] | None = None) -> None:
    scratch = memoryview(bytearray(_SCRATCH_BYTES))
    while begin < end:
        got = os.preadv(fd, [scratch[: end - begin]], begin)
        if not got:
            raise EngineStartError("the file has become shorter while it was read")
        if take is not None:
            take(scratch[:got])
        begin += got


def _yield_processor() -> None:
    """Of this thread alone: what it does is for later, what others do is waited for."""
    try:
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):
        pass
