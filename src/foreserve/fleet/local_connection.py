"""One replica as a worker process on this machine: its messages, its start and its end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

import msgspec

from foreserve.core import EngineSpec
from foreserve.fleet.carrying import carried, refusal
from foreserve.fleet.contexts import Contexts
from foreserve.fleet.forked import ForkLost
from foreserve.fleet.process import SpawnedProcess, WorkerProcess, how_it_ended, log_level, surroundings
from foreserve.fleet.stages import Present
from foreserve.fleet.watch import Watch, heartbeat_s
from foreserve.messages import Exit, FromWorker, ImportedLater, Start, StartFailed, ToWorker, decode_from_worker
from foreserve.ports import Listener
from foreserve.runtime import bootstrap
from foreserve.runtime.outbox import MessageTooLong
from foreserve.runtime.wire import Wire, pair

log = logging.getLogger(__name__)

LEAVE_S = 10.0
"""How long a worker may take to end once it has closed its connection; by itself it takes half of that at most."""


class LocalConnection:
    """One worker process. What is sent before it has come up waits for it."""

    def __init__(
        self,
        name: str,
        spec: EngineSpec,
        listener: Listener,
        max_message_bytes: int,
        contexts: Contexts | None = None,
        waits: Callable[[], str] = str,
    ) -> None:
        self._name = name
        self._limit = max_message_bytes
        self._contexts = contexts
        self._spec = spec
        self._listener = listener
        self._watch = Watch(spec, listener, self._end, waits)
        self._why: str | None = None
        self._returncode: int | None = None
        self._process_ended = self._silent = False
        self._start_failed: str | None = None
        self._loop = asyncio.get_running_loop()
        self._process: WorkerProcess | None = None
        self._starting: asyncio.Task[None] | None = None
        self._wire: Wire | None = None
        self._leaving: asyncio.TimerHandle | None = None
        self.gone = asyncio.Event()
        self.pid: int | None = None
        self.present: Callable[[], Present | None] = lambda: None
        """What was there of its service when it was launched; `None` while that is not known."""

    async def start(self, spec: EngineSpec) -> None:
        """Send it `Start`, and start the process that will read it; does not wait until that has been forked."""
        try:
            ours, theirs = pair()
        except OSError as error:
            self._never_ran(f"{self._name}: no connection can be made: {error.strerror}")
            return
        self._wire = Wire(ours, self._received, self._hung_up, max_message_bytes=self._limit)
        self.send(Start(spec.factory, spec.options, heartbeat_s(spec), spec.weights, spec.memory_bytes, spec.rest_s))
        if self._why is not None:
            theirs.close()
        elif self._contexts is None:
            await self._spawn(spec, theirs)
        else:
            self._starting = self._loop.create_task(self._fork(spec, theirs, self._contexts))
            self._starting.add_done_callback(lambda _: theirs.close())

    async def _fork(self, spec: EngineSpec, theirs: socket.socket, contexts: Contexts) -> None:
        try:
            process = await contexts.fork(self._name, spec, theirs, (str(self._limit), log_level()), self._ended)
        except ForkLost as lost:
            self._starting = None
            self._end(f"the process that was to fork it is gone: {lost}")
            return
        if process is None:
            await self._spawn(spec, theirs)
        else:
            theirs.close()  # or its end would not be seen
            await self._started(process)

    async def _spawn(self, spec: EngineSpec, theirs: socket.socket) -> None:
        python, env = surroundings(spec)
        fd = theirs.fileno()
        command = [python, bootstrap.__file__, "worker", str(fd), str(self._limit), log_level()]
        try:
            with theirs:
                process = SpawnedProcess(self._name, command, env, self._ended, (fd,))
        except OSError as error:
            self._never_ran(f"{self._name}: the interpreter {python} cannot be run: {error.strerror}")
        else:
            await self._started(process)

    async def _started(self, process: WorkerProcess) -> None:
        self._process = process
        self.pid = process.pid
        await process.log_output()

    # --- Connection

    def send(self, message: ToWorker) -> None:
        """As `Connection.send`. Work that cannot be carried ends `rejected`; such a `Feed` raises TooLarge."""
        if self.gone.is_set() or self._process_ended:
            return
        try:
            data = carried(message, self._limit)
        except (MessageTooLong, TypeError, ValueError) as error:
            self._refuse(message, error)
            return
        if self._wire is not None and not self._wire.send(data):
            self._end("it has stopped reading its messages")

    async def stop(self, grace_s: float) -> None:
        """As `Connection.stop`: Exit at once, SIGTERM at half of `grace_s`, SIGKILL at its end."""
        self._why = self._why or "stopped"
        self.send(Exit())
        if self._process is None:
            self._end("stopped")
        if not await self._gone_within(grace_s / 2) and self._process is not None:
            self._process.terminate()
            if not await self._gone_within(grace_s / 2):
                self._process.kill()
        await self.gone.wait()

    def kill(self) -> None:
        """End it and all it has started, at once."""
        self._end("killed")

    def pause(self, paused: bool) -> None:
        """Hear nothing of it while `paused`, for a listener that cannot take more; it is then slowed down itself."""
        if self._wire is not None:
            self._wire.pause(paused)

    # --- what comes from the worker

    def _received(self, data: bytes) -> None:
        try:
            message = decode_from_worker(data)
        except msgspec.DecodeError as error:
            self._end(f"it sent a message that this version does not know: {error}")
            return
        self._heard(message)

    def _heard(self, message: FromWorker) -> None:
        if isinstance(message, ImportedLater):
            if self._contexts is not None:
                self._contexts.heard(self._spec, message)
            return
        if isinstance(message, StartFailed):
            self._start_failed = message.reason
        self._watch.heard(message)

    def _refuse_start(self, reason: str) -> None:
        self._heard(StartFailed(reason))

    # --- its end

    def _end(self, reason: str) -> None:
        self._why = self._why or reason
        if self._process is not None:
            self._process.kill()
        else:
            if self._starting is not None:
                self._starting.cancel()
            self._loop.call_soon(self._finally)

    def _never_ran(self, reason: str) -> None:
        self._refuse_start(reason)
        self._loop.call_soon(self._finally)

    def _ended(self, returncode: int | None) -> None:
        self._returncode = returncode
        self._process_ended = True
        if self._silent or self._wire is None:
            self._finally()
        else:
            self._wire.peer_ended()

    def _hung_up(self, reason: str) -> None:
        self._silent = True
        if self._process_ended:
            self._finally()
        elif reason:
            self._end(reason)
        else:
            self._leaving = self._loop.call_later(LEAVE_S, self._end, "it closed its connection and did not end")

    def _finally(self) -> None:
        if self.gone.is_set():
            return
        if self._leaving is not None:
            self._leaving.cancel()
        if self._wire is not None:
            self._wire.close()
        if self._process is not None:
            if self._returncode == bootstrap.CANNOT_RUN and self._start_failed is None:
                self._refuse_start(f"{self._name}: {self._process.last_words(1)}")
            self._process.close()
        self.gone.set()
        self._watch.exited(self._reason())

    def _reason(self) -> str:
        if self._why is not None:
            return self._why
        if self._start_failed is not None:
            return f"the engine did not start: {self._start_failed}"
        if self._process is None:
            return "it never ran"
        words = self._process.last_words()
        return how_it_ended(self._returncode) + (f"; its last words: {words}" if words else "")

    async def _gone_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self.gone.wait()
        except TimeoutError:
            return False
        return True

    def _refuse(self, message: ToWorker, error: Exception) -> None:
        instead = refusal(self._name, message, error)
        if isinstance(instead, tuple):
            for part in instead:
                self.send(part)
        elif isinstance(instead, StartFailed):
            self._heard(instead)
            self._end(f"the engine did not start: {instead.reason}")
        else:
            self._loop.call_soon(self._watch.heard, instead)
