"""Replicas as worker processes on this machine."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from foreserve.core import Chunk, EngineSpec, Finish
from foreserve.errors import TooLarge
from foreserve.fleet.hub import Hub
from foreserve.fleet.process import WorkerProcess, environment, how_it_ended, interpreter
from foreserve.fleet.watch import Watch, heartbeat_s
from foreserve.messages import (
    Chunks,
    Exit,
    Feed,
    FromWorker,
    Run,
    Start,
    StartFailed,
    ToWorker,
    decode_from_worker,
    encode,
)  # fmt: skip
from foreserve.ports import Connection, Listener
from foreserve.runtime import bootstrap
from foreserve.runtime.outbox import MessageTooLong
from foreserve.runtime.wire import BYE, HELLO, MAX_MESSAGE_BYTES

log = logging.getLogger(__name__)

LAST_MESSAGES_S = 0.05
LAST_MESSAGES_ORDERLY_S = 0.15
"""How long after its end a worker's last messages may arrive: after a crash, and after an end of its own."""


class LocalConnection:
    """One worker process. What is sent before it has come up waits for it."""

    def __init__(self, name: str, spec: EngineSpec, listener: Listener, hub: Hub) -> None:
        self._name = name
        self._hub = hub
        self._listener = listener
        self._watch = Watch(spec, listener, self._end)
        self._identity = hub.join(self._received)
        self._early: list[bytes] | None = []
        self._why: str | None = None
        self._returncode: int | None = None
        self._said_all = False
        self._start_failed: str | None = None
        self._loop = asyncio.get_running_loop()
        self._process: WorkerProcess | None = None
        self.gone = asyncio.Event()
        self.pid: int | None = None

    async def start(self, spec: EngineSpec) -> None:
        """Start the process and send it `Start`."""
        command = [
            interpreter(spec.python), bootstrap.__file__,
            self._hub.endpoint, self._identity, str(self._hub.max_message_bytes), _log_level(),
        ]  # fmt: skip
        try:
            self._process = WorkerProcess(
                self._name, command, environment(spec.env, spec.python is not None), self._ended
            )
        except OSError as error:
            self._refuse_start(f"{self._name}: the interpreter {command[0]} cannot be run: {error.strerror}")
            self._loop.call_soon(self._finally)
            return
        self.pid = self._process.pid
        self.send(Start(spec.factory, spec.options, heartbeat_s(spec)))
        await self._process.log_output()

    # --- Connection

    def send(self, message: ToWorker) -> None:
        """As `Connection.send`. Work that cannot be carried ends `rejected`; such a `Feed` raises TooLarge."""
        if self.gone.is_set() or self._returncode is not None:
            return
        try:
            data = self._encode(message)
        except (MessageTooLong, TypeError, ValueError) as error:
            self._refuse(message, error)
            return
        if self._early is not None:
            self._early.append(data)
        elif not self._hub.send(self._identity, data):
            self._end("it has stopped reading its messages")

    async def stop(self, grace_s: float) -> None:
        """As `Connection.stop`: Exit at once, SIGTERM at half of `grace_s`, SIGKILL at its end."""
        self._why = self._why or "stopped"
        self.send(Exit())
        if not await self._gone_within(grace_s / 2) and self._process is not None:
            self._process.terminate()
            if not await self._gone_within(grace_s / 2):
                self._process.kill()
        await self.gone.wait()

    def kill(self) -> None:
        """End it and all it has started, at once."""
        self._end("killed")

    # --- what comes from the worker

    def _received(self, data: bytes) -> None:
        if data == HELLO:
            early, self._early = self._early or [], None
            for waiting in early:
                self._hub.send(self._identity, waiting)
        elif data == BYE:
            self._said_all = True
            if self._returncode is not None:
                self._finally()
        else:
            try:
                message = decode_from_worker(data)
            except msgspec.DecodeError as error:
                self._end(f"it sent a message that this version does not know: {error}")
                return
            self._heard(message)

    def _heard(self, message: FromWorker) -> None:
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

    def _ended(self, returncode: int) -> None:
        self._returncode = returncode
        if self._said_all:
            self._finally()
        else:
            self._loop.call_later(LAST_MESSAGES_ORDERLY_S if returncode == 0 else LAST_MESSAGES_S, self._finally)

    def _finally(self) -> None:
        if self.gone.is_set():
            return
        self._hub.read()
        self._hub.leave(self._identity)
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
        if self._process is None or self._returncode is None:
            return "it never ran"
        words = self._process.last_words()
        return how_it_ended(self._returncode) + (f"; its last words: {words}" if words else "")

    async def _gone_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.gone.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _encode(self, message: ToWorker) -> bytes:
        data = encode(message)
        if len(data) > self._hub.max_message_bytes:
            raise MessageTooLong(len(data), self._hub.max_message_bytes)
        return data

    def _refuse(self, message: ToWorker, error: Exception) -> None:
        words = f"cannot be sent to the engine: {error}"
        if isinstance(message, Run) and len(message.works) > 1:
            for work in message.works:
                self.send(Run((work,), message.plan))
        elif isinstance(message, Run):
            (work,) = message.works
            finish = Finish(reason="rejected", error=f"the request {words}")
            chunk = Chunk(id=work.id, index=0, attempt=work.attempt, finish=finish)
            self._loop.call_soon(self._watch.heard, Chunks((chunk,)))
        elif isinstance(message, Feed):
            raise TooLarge(f"this part of the prompt {words}")
        else:
            self._refuse_start(f"{self._name}: the engine's options are wrong: {type(message).__name__} {words}")
            self._end(f"the engine did not start: {self._start_failed}")


class LocalLauncher:
    """Starts replicas as processes of this machine; see `runtime.worker` for the other side.

    A message is at most `max_message_bytes` long, either way.
    """

    def __init__(self, *, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max_message_bytes = max_message_bytes
        self._hub: Hub | None = None
        self._connections: dict[LocalConnection, None] = {}

    async def launch(self, name: str, spec: EngineSpec, listener: Listener) -> Connection:
        """As `Launcher.launch`. An interpreter that does not exist or lacks packages is a `StartFailed`."""
        if self._hub is None:
            self._hub = Hub(self._max_message_bytes)
        connection = LocalConnection(name, spec, listener, self._hub)
        self._connections = {known: None for known in self._connections if not known.gone.is_set()}
        self._connections[connection] = None
        await connection.start(spec)
        return connection

    async def close(self) -> None:
        """End all processes, within about two seconds, and remove the socket's folder."""
        await asyncio.gather(*(connection.stop(2.0) for connection in self._connections))
        self._connections.clear()
        if self._hub is not None:
            self._hub.close()
            self._hub = None


def _log_level() -> str:
    return logging.getLevelName(logging.getLogger("foreserve").getEffectiveLevel())
