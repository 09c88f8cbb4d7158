"""What the memory owner and those who hold leases say to each other: one packet a message, with descriptors beside it.

Sockets are Unix sockets that keep packets apart (`SOCK_SEQPACKET`). Every request has a number of the client's choice,
which the answer carries; the number of an `Acquire` or `Adopt` names the lease from then on. A lease ends with
`Release` or with its connection.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from foreserve.core import WeightsRef
from foreserve.runtime.packets import receive_packet

MAX_PACKET_BYTES: Final = 128 * 1024
"""Of any message; no limit of the kernel's for such sockets is lower."""

SOURCE_CHARACTERS: Final = 300
"""Of a longer source its end is told."""

MOST_TOLD: Final = 100
"""Entries that `Told` tells of, so that it fits."""


class _Message(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower):
    """Base of all messages."""


class Acquire(_Message, frozen=True):
    """Lease these weights. Paths are absolute; `python` is the interpreter that a loader's code is for.

    With `quiet` no descriptor is wanted: the client only wants them to be there.
    """

    number: int
    ref: WeightsRef
    python: str
    quiet: bool = False


class Adopt(_Message, frozen=True):
    """Lease what an earlier owner gave, as its `Given` told it; the descriptor comes along.

    Answered as a quiet `Acquire`, or not at all where it cannot be taken over.
    """

    number: int
    ref: WeightsRef
    python: str
    key: str
    restore_s: float
    sha256: str | None = None


class Place(_Message, frozen=True):
    """Lease a copy, on `device` (a `device.identity`), of what lease `of` of this line has in the host's memory.

    Answered as an `Acquire`; the descriptor is that of the copy, which begins with the first tensor's first byte.
    """

    number: int
    of: int
    device: str


class AdoptCopy(_Message, frozen=True):
    """Lease such a copy that an earlier owner gave, as its `Given` told it; the descriptor comes along.

    Answered as a quiet `Acquire`, or not at all where it cannot be taken over.
    """

    number: int
    of: int
    device: str
    size: int
    restore_s: float


class Release(_Message, frozen=True):
    """The end of a lease."""

    number: int


class Ask(_Message, frozen=True):
    """What is held?"""

    number: int


ToOwner = Acquire | Adopt | Place | AdoptCopy | Release | Ask


class Given(_Message, frozen=True):
    """A lease is there; the descriptor comes along. `key` is the identity of its content.

    `size` is that of a copy on a device, in bytes; it was `copied` for this lease.
    """

    number: int
    key: str
    restore_s: float
    sha256: str | None = None
    size: int = 0
    copied: bool = False


class Waits(_Message, frozen=True):
    """A lease is there, but no room for what it is of; why in words. Followed by `Given` or `Refused` once there is."""

    number: int
    reason: str


class Refused(_Message, frozen=True):
    """A lease is not to be had and over; why in words."""

    number: int
    reason: str


MOST_MARKS: Final = 16
"""Of one image; the oldest goes first."""


def mark(ref: WeightsRef) -> int:
    """A number for where weights come from, by which one entry may tell of many such places. Paths are absolute."""
    return int.from_bytes(hashlib.blake2b(f"{ref.kind}:{ref.source}".encode(), digest_size=8).digest(), "big")


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """One image of weights: by what `names` its holders call it, and where it stood when this was told.

    `state` is one of `memory_entry.State`, or "waiting" while there is no room for it.

    `bytes` is the room kept for it, `restore_s` the seconds that loading it took, `bytes_read` what that read, `hits`
    how many leases found it there or on its way. `device` is where a copy is that is not in the host's memory.
    `marks` are of the places that it was asked for as, of which `source` is one.
    """

    names: tuple[str, ...]
    source: str
    kind: str
    state: str
    bytes: int
    references: int
    restore_s: float
    bytes_read: int
    hits: int
    sha256: str | None
    device: str | None = None
    marks: tuple[int, ...] = ()


class Told(_Message, frozen=True, kw_only=True):
    """The answer to `Ask`: at most `MOST_TOLD` entries, and counts since the owner's start, of all it has had.

    Counts and `bytes` are of the host's memory; `uploads` and `device_bytes` are those of copies on devices.
    """

    number: int
    pid: int
    entries: tuple[Held, ...]
    bytes: int
    hits: int
    misses: int
    bytes_read: int
    loads: int
    evictions: int
    uploads: int = 0
    device_evictions: int = 0
    device_bytes: int = 0


ToClient = Given | Waits | Refused | Told

_encoder = msgspec.msgpack.Encoder()
_to_owner: msgspec.msgpack.Decoder[ToOwner] = msgspec.msgpack.Decoder(ToOwner)
_to_client: msgspec.msgpack.Decoder[ToClient] = msgspec.msgpack.Decoder(ToClient)


def client_socket() -> socket.socket:
    """Of the one kind; not connected yet."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: ToOwner | ToClient, fds: Sequence[int] = ()) -> None:
    """Send one packet. Raises OSError: BlockingIOError when a peer has not read many; ValueError for too long a one."""
    data = _encoder.encode(message)
    if len(data) > MAX_PACKET_BYTES:
        raise ValueError(f"a message of {len(data)} bytes; at most {MAX_PACKET_BYTES} are carried")
    socket.send_fds(sock, [data], fds)


def receive(sock: socket.socket) -> tuple[bytes, int | None]:
    """One packet and the descriptor that came with it, which is the caller's; no bytes at the end. Raises OSError."""
    data, fds = receive_packet(sock, MAX_PACKET_BYTES, 1)
    if fds is None:
        raise OSError("a packet brought more than one descriptor, or one for which there was no room")
    return data, fds[0] if fds else None


def decode_to_owner(data: bytes) -> ToOwner:
    """Raises msgspec.DecodeError when `data` is no such message."""
    return _to_owner.decode(data)


def decode_to_client(data: bytes) -> ToClient:
    """Raises msgspec.DecodeError when `data` is no such message."""
    return _to_client.decode(data)
