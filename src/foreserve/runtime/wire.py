"""One ZeroMQ socket on the running event loop, without a future per message.

`zmq.asyncio` makes a future and a task switch for every message; here a turn of the loop reads all that has come. Works
on asyncio's and uvloop's loops. While a loop is blocked, ZeroMQ's own thread goes on receiving, so nothing is lost and
what has come is read right after.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import zmq

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 256 * 2**20
HIGH_WATER = 10_000
"""Messages that may wait in each direction for one peer before `Wire.send` refuses."""

TURN = 256
"""Messages read before the loop's other work has its turn."""

HELLO = b""
BYE = b"\x00"
"""What a worker sends of its own besides messages (none of which is so short): it is there, and it has said all."""


def socket(context: zmq.Context[zmq.Socket[bytes]], kind: int, max_message_bytes: int) -> zmq.Socket[bytes]:
    """A bounded socket. A peer that sends a longer message is disconnected, so senders look before they send."""
    made = context.socket(kind)
    made.set(zmq.SocketOption.SNDHWM, HIGH_WATER)
    made.set(zmq.SocketOption.RCVHWM, HIGH_WATER)
    made.set(zmq.SocketOption.MAXMSGSIZE, max_message_bytes)
    return made


class Wire:
    """Reads `socket` for `heard(frames)`, sends to it without blocking. `room()` is called when it may send again."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        heard: Callable[[list[bytes]], None],
        room: Callable[[], None] = lambda: None,
    ) -> None:
        self._socket = socket
        self._heard = heard
        self._room = room
        self._full = False
        self._turn_due = False
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.get(zmq.SocketOption.FD))
        self._loop.add_reader(self._fd, self.turn)
        self._turn_soon()

    def send(self, *frames: bytes) -> bool:
        """Whether it is on its way; False when the peer has `HIGH_WATER` messages unread. Raises zmq.ZMQError."""
        try:
            if len(frames) == 1:
                self._socket.send(frames[0], zmq.Flag.DONTWAIT)
            else:
                self._socket.send_multipart(frames, zmq.Flag.DONTWAIT)
        except zmq.Again:
            self._full = True
            return False
        finally:
            # The descriptor tells of news once, and sending may have swallowed the telling.
            self._turn_soon()
        return True

    def turn(self) -> None:
        """Read what has come, at most `TURN` messages; the rest in the loop's next turn."""
        self._turn_due = False
        if self._socket.closed:
            return
        receive = self._socket.recv_multipart
        for _ in range(TURN):
            try:
                frames = receive(zmq.Flag.DONTWAIT)
            except zmq.Again:
                break
            try:
                self._heard(frames)
            except Exception:
                log.exception("a message was not handled")
            if self._socket.closed:
                return
        else:
            self._turn_soon()
        if self._full and int(self._socket.get(zmq.SocketOption.EVENTS)) & zmq.PollEvent.POLLOUT:
            self._full = False
            self._room()

    def close(self, linger_s: float = 0.0) -> None:
        """Stop reading; what was sent has `linger_s` to leave."""
        if not self._socket.closed:
            self._loop.remove_reader(self._fd)
            self._socket.close(linger=int(linger_s * 1000))

    def _turn_soon(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self.turn)
