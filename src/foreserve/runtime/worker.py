"""A worker process: one engine host behind a socket, which ends when its gateway is gone."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable

import msgspec

from foreserve.messages import Exit, FromWorker, decode_to_worker, encode
from foreserve.runtime.ends import die_with_parent
from foreserve.runtime.factory import load_factory
from foreserve.runtime.host import EngineHost
from foreserve.runtime.later import Later
from foreserve.runtime.limits import Upkeep
from foreserve.runtime.outbox import MessageTooLong
from foreserve.runtime.wire import Wire

log = logging.getLogger(__name__)

START_FAILED = 3
"""Exit code when the engine did not start; `StartFailed` has told why."""

ENGINE_FAILED = 4
"""Exit code when a started engine has said that it is of no use any more; why is the last line on standard error."""

FLUSH_S = 2.0
"""How long the last messages may take to leave."""

ORPHAN_S = 5.0
"""How long an engine may take to close once the gateway is gone."""

UNREAD_BYTES = 1 << 30
"""What may wait here for a gateway that does not read, beyond what the wire holds."""


class Worker:
    """Carries messages between the socket and the host. While the gateway does not read, engines are not asked."""

    def __init__(self, sock: socket.socket, max_message_bytes: int, later: Later | None) -> None:
        self._limit = max_message_bytes
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._wire = Wire(sock, self._heard, self._gone, self._room, max_message_bytes)
        self.host = EngineHost(load_factory, self._send, Upkeep(), later)

    async def run(self) -> int:
        """Until the host has closed. Returns the exit code."""
        await self.host.closed.wait()
        try:
            # Nothing waits in the wire only when nothing waits here: `_room` comes first.
            async with asyncio.timeout(FLUSH_S):
                await self._wire.written.wait()
        except TimeoutError:
            log.warning("the gateway reads nothing; its last messages are lost")
        self._wire.close()
        if self.host.failed:
            log.error("the engine has failed: %s", self.host.failed)  # once more: the last words explain an end
            return ENGINE_FAILED
        return START_FAILED if self.host.start_failed else 0

    def _heard(self, data: bytes) -> None:
        try:
            message = decode_to_worker(data)
        except msgspec.DecodeError as error:
            log.error("a message from the gateway is none that this version knows: %s", error)
            return
        self.host.handle(message)

    def _gone(self, reason: str) -> None:
        log.warning("the gateway is gone; ending%s", f": {reason}" if reason else "")
        self.host.handle(Exit())

    def _send(self, message: FromWorker) -> None:
        data = encode(message)
        if len(data) > self._limit:
            raise MessageTooLong(len(data), self._limit)
        self._put(data)

    def _put(self, data: bytes) -> None:
        if not self._outbox and self._wire.send(data):
            return
        if not self._outbox:
            self.host.pause()
        self._outbox.append(data)
        self._outbox_bytes += len(data)
        if self._outbox_bytes > UNREAD_BYTES:
            log.critical("the gateway reads nothing and %d bytes wait for it; giving up", self._outbox_bytes)
            os._exit(1)

    def _room(self) -> None:
        while self._outbox:
            if not self._wire.send(self._outbox[0]):
                return
            self._outbox_bytes -= len(self._outbox.popleft())
        self.host.resume()


async def serve(fd: int, max_message_bytes: int, forked: bool) -> int:
    """Be the worker of the gateway at the other end of `fd`. Returns the exit code."""
    later = Later() if forked else None
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)  # what the engine starts shall not hold the gateway's line
    faulthandler.enable(all_threads=False)  # a crash, as a write to shared weights, is told by where it happened
    worker = Worker(sock, max_message_bytes, later)
    loop = asyncio.get_running_loop()
    _when_orphaned(lambda: loop.call_soon_threadsafe(worker.host.handle, Exit()))
    return await worker.run()


def main(arguments: list[str]) -> int:
    """As `run`, in a process that the gateway itself has started: it ends with it."""
    die_with_parent(True)
    return run(arguments)


def run(arguments: list[str], forked: bool = False) -> int:
    """`FD MAX_MESSAGE_BYTES LOG_LEVEL`. One that was `forked` tells what it imports. Returns the exit code."""
    fd, max_message_bytes, level = arguments
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    code = asyncio.run(serve(int(fd), int(max_message_bytes), forked))
    if code == ENGINE_FAILED:
        # At once: a broken engine may hang in what it does at an exit, and until we are gone its work is not run again.
        logging.shutdown()
        os._exit(code)
    # Threads that an engine has left behind would keep the interpreter from ending.
    _after(ORPHAN_S, lambda: os._exit(code))
    return code


def _when_orphaned(tell: Callable[[], object]) -> None:
    """The gateway holds the other end of standard input and never writes: its end is the gateway's end."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        _after(ORPHAN_S, lambda: os.killpg(os.getpgrp(), signal.SIGKILL))
        try:
            tell()
        except RuntimeError:
            pass  # the loop has ended by itself

    threading.Thread(target=watch, name="foreserve-orphan-watch", daemon=True).start()


def _after(seconds: float, do: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, do)
    timer.daemon = True
    timer.start()
