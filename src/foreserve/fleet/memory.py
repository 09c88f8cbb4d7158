"""This machine's memory owner as the gateway keeps it: started when first wanted, started again when it dies.

The gateway binds the socket and listens for as long as it lives, and each owner inherits it. So workers find it at one
path whether an owner runs or not: who connects where none does waits a little, and makes us start one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from foreserve import clock
from foreserve.core import EngineSpec, WeightsRef
from foreserve.fleet.memory_line import Hold, OwnerLine
from foreserve.fleet.process import SpawnedProcess, environment, how_it_ended, interpreter, log_level
from foreserve.fleet.stages import all_held
from foreserve.messages import FromWorker, Ready, StartFailed
from foreserve.ports import Listener
from foreserve.runtime import bootstrap
from foreserve.runtime.footprint import Footprint, footprint
from foreserve.runtime.leases import MEMORY, resolved
from foreserve.runtime.memory_messages import Held, Told, client_socket
from foreserve.runtime.memory_owner import OwnerSettings
from foreserve.settings import RuntimeSettings

log = logging.getLogger(__name__)

BACKLOG: Final = 1024
"""Workers that may wait for an owner to come up."""

FIRST_PAUSE_S: Final = 0.1
MOST_PAUSE_S: Final = 10.0
GOOD_S: Final = 30.0
"""Before another owner is started: doubled with each that did not live for `GOOD_S`."""

_MOST_PATH: Final = 100
"""Bytes of a Unix socket's path that every system takes."""


class MemoryStats(msgspec.Struct, frozen=True, kw_only=True):
    """What the memory owner holds: `entries` by size, the largest first; counts are since its start.

    `bytes`, `loads` and `evictions` are of the host's memory; `uploads`, `device_evictions` and `device_bytes` are of
    copies on devices.

    `memory` is that of its own process, in which files count only while it reads them.
    """

    pid: int
    memory: Footprint | None
    entries: tuple[Held, ...]
    bytes: int
    hits: int
    misses: int
    loads: int
    evictions: int
    bytes_read: int
    uploads: int
    device_evictions: int
    device_bytes: int


class Memory:
    """The owner for all workers that this gateway starts. `digests` is the folder where what it learns is kept.

    Nothing is made before it is wanted. On systems without Linux's descriptors there is none, and workers map files
    by themselves.
    """

    def __init__(self, settings: RuntimeSettings, digests: Path | None = None) -> None:
        self._settings = settings
        self._digests = digests
        self._folder: Path | None = None
        self._listening: socket.socket | None = None
        self._process: SpawnedProcess | None = None
        self._began = 0.0
        self._pause_s = 0.0
        self._restart: asyncio.TimerHandle | None = None
        self._ended = asyncio.Event()
        self._logging: asyncio.Task[None] | None = None
        self._closed = False
        self._line = OwnerLine()

    @property
    def pid(self) -> int | None:
        """Of the owner, while one runs."""
        return self._process.pid if self._process is not None else None

    def env(self) -> dict[str, str]:
        """What a worker's environment needs to find the owner."""
        if self._listening is None and not self._closed and sys.platform == "linux":
            try:
                self._listen()
            except OSError as error:
                log.error("there is no memory owner, so each worker loads its own weights: %s", error)
        return {} if self._listening is None else {MEMORY: str(self._path)}

    def prepare(self, spec: EngineSpec, listener: Listener) -> tuple[EngineSpec, Listener, Callable[[], str]]:
        """A spec whose process finds the owner, and a listener that lets go of what was fetched for it in time.

        The third tells what of its weights waits for room, in words; empty where nothing does.
        """
        spec = msgspec.structs.replace(spec, env={**self.env(), **spec.env}, rest_s=self._settings.rest_s)
        if not spec.weights:
            return spec, listener, str
        hold = self.prefetch(spec.weights, spec.python)
        return spec, _Until(listener, hold), lambda: hold.waits

    def prefetch(self, refs: Sequence[WeightsRef], python: str | None = None) -> Hold:
        """Have these loaded for a worker in the interpreter `python` that is about to start. Returns at once.

        What goes wrong is told to the worker, which asks for the same.
        """
        program = interpreter(python)
        program = os.path.abspath(shutil.which(program) or program)
        wanted = [resolved(ref) for ref in refs] if self.env() else []
        return self._line.hold(self._path, wanted, program)

    async def stats(self) -> MemoryStats | None:
        """What is held; `None` while no owner runs, or when it does not answer."""
        told = None if self._process is None else await self._line.ask(self._path)
        if told is None:
            return None
        memory = await clock.offload(lambda: footprint(told.pid))
        known = {name: getattr(told, name) for name in MemoryStats.__struct_fields__ if name != "memory"}
        return MemoryStats(memory=memory, **known)

    def held(self, refs: Sequence[WeightsRef]) -> asyncio.Future[bool]:
        """Whether all of these are in memory now, before anything that is asked for after this call."""
        loop = asyncio.get_running_loop()
        if self._process is None or not refs:
            known = loop.create_future()
            known.set_result(not refs)
            return known
        return loop.create_task(self._held(refs, self._line.asked(self._path)))

    async def _held(self, refs: Sequence[WeightsRef], answer: Awaitable[Told | None]) -> bool:
        told = await answer
        return told is not None and all_held([resolved(ref) for ref in refs], ready_marks(told.entries))

    async def close(self) -> None:
        """End the owner. Workers should be gone before."""
        self._closed = True
        self._line.close()
        if self._restart is not None:
            self._restart.cancel()
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening.fileno())
            self._listening.close()
            self._listening = None
        if self._process is not None:
            self._process.kill()
            await self._ended.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # --- the owner's process

    @property
    def _path(self) -> Path:
        return (self._folder or Path()) / "memory"

    def _listen(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="foreserve-"))  # for this user alone
        if len(os.fsencode(self._path)) > _MOST_PATH:
            self._folder.rmdir()
            self._folder = Path(tempfile.mkdtemp(prefix="foreserve-", dir="/tmp"))
        try:
            self._listening = _listening(self._path)
        except OSError:
            self._path.unlink(missing_ok=True)
            self._folder.rmdir()
            raise
        self._await_need()

    def _await_need(self) -> None:
        """Start an owner when somebody connects."""
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening.fileno(), self._start)

    def _start(self) -> None:
        assert self._listening is not None
        loop = asyncio.get_running_loop()
        fd = self._listening.fileno()
        loop.remove_reader(fd)
        words = msgspec.json.encode(self._owner_settings()).decode()
        command = [sys.executable, bootstrap.__file__, "memory_process", str(fd), words, log_level()]
        self._ended.clear()
        self._began = clock.now()
        try:
            self._process = SpawnedProcess("memory", command, environment({}, False), self._gone, (fd,))
        except OSError as error:
            log.error("the memory owner cannot be started: %s", error)
            self._later()
        else:
            self._logging = loop.create_task(self._process.log_output())

    def _owner_settings(self) -> OwnerSettings:
        settings = self._settings
        return OwnerSettings(
            idle_s=settings.host_s,
            capacity=None if settings.host_gb is None else int(settings.host_gb * 2**30),
            device_idle_s=settings.device_s,
            device_capacity=None if settings.device_gb is None else int(settings.device_gb * 2**30),
            readers=settings.readers,
            chunk_bytes=settings.chunk_mb * 2**20,
            sources=tuple(settings.sources),
            digests=None if self._digests is None else str(self._digests / "weights.json"),
            folder=str(self._folder),
        )

    def _gone(self, returncode: int | None) -> None:
        assert self._process is not None
        if not self._closed:
            words = self._process.last_words()
            how = how_it_ended(returncode) + (f"; its last words: {words}" if words else "")
            log.error("the memory owner is gone: %s; workers keep what they have, and the next one takes it over", how)
        self._process.close()
        self._process = None
        self._ended.set()
        self._line.close()
        if not self._closed:
            self._later()

    def _later(self) -> None:
        lived = clock.now() - self._began
        self._pause_s = FIRST_PAUSE_S if lived >= GOOD_S else min(MOST_PAUSE_S, 2 * self._pause_s or FIRST_PAUSE_S)
        self._restart = asyncio.get_running_loop().call_later(self._pause_s, self._await_need)


def ready_marks(entries: Sequence[Held], on_device: bool = False) -> frozenset[int]:
    """Of those that can be had at once from the host's memory, or that are on a device, for `stages.all_held`."""
    found = [each for each in entries if each.state == "ready" and (each.device is not None) == on_device]
    return frozenset(each for entry in found for each in entry.marks)


def _listening(path: Path) -> socket.socket:
    made = client_socket()
    try:
        made.bind(str(path))
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


class _Until:
    """Passes on to `listener`, and releases `hold` once the replica is ready or will never be."""

    def __init__(self, listener: Listener, hold: Hold) -> None:
        self._listener = listener
        self._hold = hold

    def heard(self, message: FromWorker) -> None:
        if isinstance(message, Ready | StartFailed):
            self._hold.release()
        self._listener.heard(message)

    def exited(self, reason: str) -> None:
        self._hold.release()
        self._listener.exited(reason)
