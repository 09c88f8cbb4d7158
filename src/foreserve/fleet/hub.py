"""The gateway's end of the wire: one ROUTER socket in a private folder, for all worker processes."""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
from collections.abc import Callable

import zmq

from foreserve.errors import ConfigError
from foreserve.runtime.wire import MAX_MESSAGE_BYTES, Wire, socket

log = logging.getLogger(__name__)

PATH_BYTES = 100
"""The longest path a Unix socket may have on every system (Linux allows 107, macOS 103)."""


class Hub:
    """Workers join under an identity. Made in a running loop; `close` leaves nothing behind."""

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self.max_message_bytes = max_message_bytes
        self._folder = _private_folder()
        self.endpoint = f"ipc://{self._folder.name}/hub"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router = socket(self._context, zmq.SocketType.ROUTER, max_message_bytes)
        router.set(zmq.SocketOption.ROUTER_MANDATORY, 1)  # a message that cannot be carried is an error, not lost
        router.bind(self.endpoint)
        self._members: dict[bytes, Callable[[bytes], None]] = {}
        self._numbers = itertools.count(1)
        self._wire = Wire(router, self._heard)

    def join(self, heard: Callable[[bytes], None]) -> str:
        """A new identity, whose messages go to `heard`."""
        identity = f"worker-{next(self._numbers)}"
        self._members[identity.encode()] = heard
        return identity

    def leave(self, identity: str) -> None:
        """Hear no more of it."""
        self._members.pop(identity.encode(), None)

    def send(self, identity: str, data: bytes) -> bool:
        """False when this worker has left too much unread. What is sent to one that has gone is dropped."""
        try:
            return self._wire.send(identity.encode(), data)
        except zmq.ZMQError as error:
            if error.errno != zmq.Errno.EHOSTUNREACH:
                raise
            return True

    def read(self) -> None:
        """Read what has come now, before the loop gets to it."""
        self._wire.turn()

    def close(self) -> None:
        """Close the socket and remove its folder."""
        self._wire.close()
        self._context.destroy(linger=0)
        self._folder.cleanup()

    def _heard(self, frames: list[bytes]) -> None:
        member = self._members.get(frames[0])
        if member is not None:
            member(frames[1])


def _private_folder() -> tempfile.TemporaryDirectory[str]:
    """A new folder that only this user may enter, with a path short enough for a socket."""
    for parent in (None, "/tmp"):
        folder = tempfile.TemporaryDirectory(prefix="foreserve-", dir=parent, ignore_cleanup_errors=True)
        if len(os.fsencode(folder.name)) + len("/hub") <= PATH_BYTES:
            return folder
        folder.cleanup()
    raise ConfigError(f"no temporary folder has a path of less than {PATH_BYTES} bytes, as a socket needs; set TMPDIR")
