"""One client's line to the memory owner: its messages in, descriptors out. The line is the lock of all its leases."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

import msgspec

from foreserve.runtime.memory_messages import (
    Acquire,
    Adopt,
    AdoptCopy,
    Place,
    Refused,
    ToClient,
    ToOwner,
    decode_to_owner,
    receive,
    send,
)  # fmt: skip

log = logging.getLogger(__name__)

MOST_LEASES: Final = 512
"""Of one line, in the host's memory. Shards of a large model are one each."""

MOST_COPIES: Final = 512
"""Of one line, on all devices."""

TURN_MESSAGES: Final = 64
"""What is read before others have their turn."""


class Line:
    """Reads for `heard(line, message, fd)`, which owns `fd`; `gone(line)` is called once, at the end of the line.

    `leases` are the caller's to keep: by the client's numbers; `copies` are the numbers of those on devices.

    A client that does not read what it asked for, or breaks the protocol, is cut off; one that asks
    for too much is refused that.
    """

    def __init__(
        self,
        sock: socket.socket,
        heard: Callable[[Line, ToOwner, int | None], None],
        gone: Callable[[Line], None],
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._heard = heard
        self._gone = gone
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)
        self.leases: dict[int, int] = {}
        self.copies: set[int] = set()

    def send(self, message: ToClient, fd: int | None = None) -> None:
        """Send it, and `fd` with it, or end the line."""
        if self._closed:
            return
        try:
            send(self._socket, message, [] if fd is None else [fd])
        except OSError as error:
            log.debug("a client is cut off: %s", error)
            self._loop.call_soon(self.close)

    def close(self) -> None:
        """End it."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._gone(self)

    def _readable(self) -> None:
        for _ in range(TURN_MESSAGES):
            if self._closed:
                return
            try:
                data, fd = receive(self._socket)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("a client's line broke: %s", error)
                data, fd = b"", None
            if not data:
                self.close()
                return
            self._take(data, fd)

    def _take(self, data: bytes, fd: int | None) -> None:
        try:
            message = decode_to_owner(data)
        except msgspec.DecodeError as error:
            log.error("a client is cut off: %s", error)
            if fd is not None:
                os.close(fd)
            self.close()
            return
        if (reason := self._too_many(message)) is None:
            self._heard(self, message, fd)
            return
        if fd is not None:
            os.close(fd)
        self.send(Refused(message.number, reason))

    def _too_many(self, message: ToOwner) -> str | None:
        """Why this is not to be had, where it is one more than a line may have. Another of its numbers is no more."""
        if message.number in self.leases:
            return None
        match message:
            case Acquire() | Adopt() if len(self.leases) - len(self.copies) >= MOST_LEASES:
                return f"one process may have {MOST_LEASES} weights, and this one has them"
            case Place() | AdoptCopy() if len(self.copies) >= MOST_COPIES:
                return f"one process may have {MOST_COPIES} copies of weights on devices, and this one has them"
        return None
