"""One end of a socket pair between a gateway and one worker, on the running event loop.

A frame is its length (4 bytes, little-endian) and so many bytes. What is sent is written before `Wire.send` returns,
by the caller's own thread: an engine that begins its next step right after it has said something keeps nobody waiting
for what it said. End of file says that everything has been read.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 256 * 2**20
UNREAD_BYTES = 64 * 2**20
"""What may wait for a peer that does not read before `Wire.send` refuses; one message of the greatest length always
may. Some hundred thousand messages: a peer that is only busy reads them in time."""

TURN_MESSAGES = 256
TURN_BYTES = 2**20
"""What is read before the loop's other work has its turn."""

SOCKET_BYTES = 2**20
"""What the kernel is asked to hold for each direction; it may grant less."""

_HEAD = 4
_READ_BYTES = 256 * 1024
_PARTS = 64
"""Pieces in one write: what waits in small messages leaves with few calls. Every system takes so many."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends. Raises OSError when this process has no descriptors left."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with suppress(OSError):  # where so much is not granted, the default is enough
                end.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
    return ends


class Wire:
    """Reads frames from `sock` for `heard(data)`, writes without blocking. Owns `sock`.

    `gone(reason)` is called once, after all that came has been heard: at the end of file (`reason` is empty), or when
    the peer has sent more than `max_message_bytes` in one frame. `room()` is called when `send` has refused and would
    take messages again. What `heard` raises is logged.
    """

    def __init__(
        self,
        sock: socket.socket,
        heard: Callable[[bytes], None],
        gone: Callable[[str], None],
        room: Callable[[], None] = lambda: None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        if max_message_bytes >= 1 << 8 * _HEAD:
            raise ValueError(f"a message may have at most {(1 << 8 * _HEAD) - 1} bytes, not {max_message_bytes}")
        sock.setblocking(False)
        self._socket = sock
        self._heard = heard
        self._gone = gone
        self._room = room
        self._longest = max_message_bytes
        self._bound = max(UNREAD_BYTES, max_message_bytes + _HEAD)
        self._waiting: deque[memoryview] = deque()
        self._unsent = 0
        self._refused = self._mute = False
        self.written = asyncio.Event()
        """Set while nothing waits to be written."""
        self.written.set()
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._part = bytearray()
        self._frames: deque[bytes] = deque()
        self._over: str | None = None
        self._peer_ended = self._turn_due = self._closed = self._paused = False
        self._loop = asyncio.get_running_loop()
        self._fd = sock.fileno()
        self._loop.add_reader(self._fd, self._readable)

    def send(self, data: bytes) -> bool:
        """Whether it is taken; False when too much is unread. What is sent to a peer that has gone is dropped."""
        if self._closed or self._mute:
            return True
        frame = (len(data).to_bytes(_HEAD, "little"), data)
        size = _HEAD + len(data)
        if self._waiting:
            if self._unsent + size > self._bound:
                self._refused = True
                return False
            self._keep(frame, 0)
        else:
            sent = self._write(frame)
            if sent < size and not self._mute:
                self._keep(frame, sent)
                self.written.clear()
                self._loop.add_writer(self._fd, self._writable)
        return True

    def pause(self, paused: bool) -> None:
        """Read nothing while `paused`: what the peer goes on writing waits in its own buffers."""
        if paused != self._paused and not self._closed and self._over is None:
            self._paused = paused
            if paused:
                self._loop.remove_reader(self._fd)
            else:
                self._loop.add_reader(self._fd, self._readable)
                self._turn_soon()

    def peer_ended(self) -> None:
        """The peer's process has ended, so all it wrote is here: `gone` follows when that has been heard.

        The end of file may be held back by a process that the peer has left behind.
        """
        self._peer_ended = True
        self._turn_soon()

    def close(self) -> None:
        """Close at once; nothing is called any more. What was written will still be read by the peer."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self._fall_silent()
            self._socket.close()

    # --- reading

    def _readable(self) -> None:
        if not self._turn_due:
            self._turn()

    def _turn_soon(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        # Reads on until nothing is there, be it in further turns: uvloop (libuv) tells of a reset connection once only.
        self._turn_due = False
        if self._paused:
            return
        left = TURN_MESSAGES
        for _ in range(TURN_BYTES // _READ_BYTES):
            if not self._frames and not self._receive():
                if self._over is not None:
                    self._end()
                return
            while self._frames and left:
                left -= 1
                try:
                    self._heard(self._frames.popleft())
                except Exception:
                    log.exception("a message was not handled")
                if self._closed or self._paused:
                    return
            if self._frames:
                break
        self._turn_soon()

    def _receive(self) -> bool:
        """Cut what has come into frames. False when nothing was there."""
        if self._over is not None:
            return False
        try:
            size = self._socket.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            if self._peer_ended:
                self._over = ""
            return False
        except OSError as error:
            if not isinstance(error, ConnectionError):
                log.warning("the connection cannot be read: %s", error)
            size = 0
        if size == 0:
            self._over = ""
            return False
        self._cut(self._buffer[:size])
        return True

    def _cut(self, data: memoryview) -> None:
        at = 0
        if self._part:  # the beginning of a frame is here: complete it first
            if len(self._part) < _HEAD:
                at = _HEAD - len(self._part)
                self._part += data[:at]
                if len(self._part) < _HEAD:
                    return
            end = at + _HEAD + self._length(self._part) - len(self._part)
            if self._over is not None:
                return
            self._part += data[at:end]
            if end > len(data):
                return
            self._frames.append(bytes(memoryview(self._part)[_HEAD:]))
            self._part = bytearray()
            at = end
        while at + _HEAD <= len(data):
            end = at + _HEAD + self._length(data[at : at + _HEAD])
            if self._over is not None:
                return
            if end > len(data):
                break
            self._frames.append(bytes(data[at + _HEAD : end]))
            at = end
        self._part += data[at:]

    def _length(self, head: bytearray | memoryview) -> int:
        length = int.from_bytes(head[:_HEAD], "little")
        if length > self._longest:
            self._over = f"it sent a message of {length} bytes; at most {self._longest} are carried"
            log.error("the connection ends: %s", self._over)
        return length

    def _end(self) -> None:
        reason, self._over = self._over or "", ""
        self._loop.remove_reader(self._fd)
        self._fall_silent()
        self._turn_due = True  # no turn comes after this
        self._gone(reason)

    # --- writing

    def _keep(self, parts: Iterable[bytes], sent: int) -> None:
        for part in parts:
            if sent < len(part):
                self._waiting.append(memoryview(part)[sent:])
                self._unsent += len(part) - sent
            sent = max(0, sent - len(part))

    def _write(self, parts: Iterable[bytes | memoryview]) -> int:
        try:
            return self._socket.sendmsg(parts)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            # Reading goes on to the end of file: the peer may have said something before it went.
            if not isinstance(error, ConnectionError):
                log.warning("the connection cannot be written: %s", error)
                self._socket.shutdown(socket.SHUT_WR)
            self._fall_silent()
            return 0

    def _writable(self) -> None:
        sent = self._write(list(islice(self._waiting, _PARTS)))
        if self._mute:
            return
        self._unsent -= sent
        while sent:
            first = self._waiting.popleft()
            if sent < len(first):
                self._waiting.appendleft(first[sent:])
            sent = max(0, sent - len(first))
        if self._refused and self._unsent <= self._bound // 2:
            self._refused = False
            self._room()
        if not self._waiting:
            self._loop.remove_writer(self._fd)
            self.written.set()

    def _fall_silent(self) -> None:
        """Write nothing more; what waits is dropped."""
        self._mute = True
        self._loop.remove_writer(self._fd)
        self._waiting.clear()
        self._unsent = 0
        self.written.set()
        if self._refused and not self._closed:
            self._refused = False
            self._loop.call_soon(self._room)
