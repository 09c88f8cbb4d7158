"""Between the gateway and a process that forks workers: typed messages with descriptors, one a packet of a Unix socket.

The socket keeps packets apart (SOCK_SEQPACKET), so a message needs no length and its descriptors come with it.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from foreserve.messages import Message
from foreserve.runtime.packets import receive_packet

PACKET_BYTES = 1 << 17
"""The longest message. Far more than any has: a worker's whole environment does not travel here."""

MOST_DESCRIPTORS = 3

MOST_TOLD = 128
"""Modules that were skipped, of which it is told why."""


# --- to the process that forks


class Import(Message, frozen=True):
    """Import these modules, each with what its `IMPORTED_LATER` names. The first message, and sent once.

    With `wary` each is told of before, and the first that leaves the process unfit is the last.
    """

    modules: tuple[str, ...]
    wary: bool = False


class Fork(Message, frozen=True):
    """Fork a worker with the descriptors that come along: its standard input, its output, its end of the wire.

    `env` is set on top of the environment, `arguments` are the worker's after its descriptor. An `heir` is no worker:
    it takes `Import` and then forks as this process does, with the wire as its line, and it may outlive it.
    """

    id: int
    env: dict[str, str]
    arguments: tuple[str, ...]
    heir: bool = False


ToForker = Import | Fork


# --- from it


class Importing(Message, frozen=True):
    """This module comes next."""

    module: str


class Imported(Message, frozen=True):
    """The imports are done. `skipped` tells of modules that could not be imported, and why; of the first `MOST_TOLD`.

    Where `unfit` is not empty it says why this process must not fork, in words. `variables` are those that they have
    changed (`fitness.changed`), `mark` is of where they come from (`fitness.mark`).
    """

    skipped: dict[str, str]
    unfit: str = ""
    variables: dict[str, int] = msgspec.field(default_factory=dict)
    mark: str = ""


class Forked(Message, frozen=True):
    """A worker runs; its pidfd comes along, by which it is known whatever becomes of its number."""

    id: int
    pid: int


class NotForked(Message, frozen=True):
    """The system has refused, and why."""

    id: int
    reason: str


class Ended(Message, frozen=True):
    """A worker has ended, what was left of its group has been killed, and it is reaped. As `Popen.returncode`."""

    pid: int
    returncode: int


FromForker = Importing | Imported | Forked | NotForked | Ended

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()
to_forker: msgspec.msgpack.Decoder[ToForker] = msgspec.msgpack.Decoder(ToForker)
from_forker: msgspec.msgpack.Decoder[FromForker] = msgspec.msgpack.Decoder(FromForker)


def unsupported() -> str:
    """Why workers cannot be forked on this platform; empty where they can.

    Elsewhere than on Linux frameworks of the system break in forked processes, and an end is not told by a descriptor.
    """
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return f"workers are forked on Linux alone, and this is {sys.platform}"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return f"this system gives no descriptors of processes: {error.strerror}"
    return ""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends. Raises OSError when this process has no descriptors left."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * PACKET_BYTES)
    return ends


def send(sock: socket.socket, message: ToForker | FromForker, fds: Sequence[int] = ()) -> None:
    """Send one message with copies of `fds`. Raises OSError: of a peer that has gone, or that reads nothing."""
    data = _encoder.encode(message)
    if len(data) > PACKET_BYTES:
        raise OSError(f"the message has {len(data)} bytes; at most {PACKET_BYTES} are carried")
    socket.send_fds(sock, [data], fds)


def receive(sock: socket.socket, decoder: msgspec.msgpack.Decoder[M]) -> tuple[M, list[int]] | None:
    """One message and its descriptors, which are the caller's to close; `None` at the end, or where it broke.

    Where not all descriptors came there are none. Raises BlockingIOError where nothing is there on a socket that does
    not block, msgspec.DecodeError.
    """
    try:
        data, fds = receive_packet(sock, PACKET_BYTES, MOST_DESCRIPTORS)
    except ConnectionError:
        return None
    if not data:
        return None
    try:
        return decoder.decode(data), fds or []
    except msgspec.DecodeError:
        for fd in fds or ():
            os.close(fd)
        raise
