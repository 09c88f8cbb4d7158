"""One packet of a Unix socket that keeps packets apart (`SOCK_SEQPACKET`), with the descriptors that came with it."""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

_SIZE: Final = 4
_RIGHTS: Final = (socket.SOL_SOCKET, getattr(socket, "SCM_RIGHTS", -1))


def receive_packet(sock: socket.socket, most_bytes: int, most_fds: int) -> tuple[bytes, list[int] | None]:
    """One packet and its descriptors, which are the caller's to close; no bytes at the end.

    `None` in place of descriptors where not all of them came: there were more than `most_fds`, or this process can have
    no more; those that did are closed. Raises OSError; ConnectionError for a packet of more than `most_bytes`.
    """
    # Not `socket.recv_fds`: it passes no flags on, so what a worker is given would go on to what its engine starts.
    room = socket.CMSG_LEN(most_fds * _SIZE)
    data, beside, flags, _ = sock.recvmsg(most_bytes, room, socket.MSG_CMSG_CLOEXEC)
    fds = [fd for level, kind, packed in beside if (level, kind) == _RIGHTS for fd in _descriptors(packed)]
    if not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        return data, fds
    for fd in fds:
        os.close(fd)
    if flags & socket.MSG_TRUNC:
        raise ConnectionError(f"a packet was longer than {most_bytes} bytes")
    return data, None


def _descriptors(packed: bytes) -> tuple[int, ...]:
    n = len(packed) // _SIZE
    return struct.unpack(f"={n}i", packed[: n * _SIZE])
