"""The owner of this machine's read-only weights: takes clients and passes on what they ask for.

`memory_hosted` is about the host's memory, `memory_placing` about devices. `memory_process` is its process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path
from typing import Final

import msgspec

from foreserve.runtime.memory_digests import Digests
from foreserve.runtime.memory_hosted import Hosted
from foreserve.runtime.memory_leases import Leases
from foreserve.runtime.memory_line import Line
from foreserve.runtime.memory_loader import Loader
from foreserve.runtime.memory_messages import MOST_TOLD, Acquire, Adopt, AdoptCopy, Ask, Place, Release, Told, ToOwner
from foreserve.runtime.memory_places import Places
from foreserve.runtime.memory_placing import Placing
from foreserve.runtime.memory_table import Table

log = logging.getLogger(__name__)

MOST_LINES: Final = 1024

AGAIN_S: Final = 0.2
"""After a client could not be taken, for want of descriptors: it stays at the door, and would be tried all the time."""


class OwnerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """See `settings.RuntimeSettings`; capacities and `chunk_bytes` are bytes.

    `digests` is the file where learned digests are kept; for `learn_after_s` see `Images`. `folder`, that of the
    socket, is removed when the gateway is gone.
    """

    idle_s: float = 900.0
    capacity: int | None = None
    device_idle_s: float = 60.0
    device_capacity: int | None = None
    readers: int = 4
    chunk_bytes: int = 16 * 2**20
    sources: tuple[str, ...] = ()
    digests: str | None = None
    learn_after_s: float = 5.0
    folder: str | None = None


class Owner:
    """Serves those who connect to `listening`, on the running loop."""

    def __init__(self, listening: socket.socket, settings: OwnerSettings) -> None:
        self._leases = Leases()
        self._hosted = Hosted(
            self._leases,
            Table(settings.idle_s, settings.capacity),
            Loader(settings.readers, settings.chunk_bytes, settings.sources),
            Digests(Path(settings.digests) if settings.digests else None),
            settings.learn_after_s,
        )
        self._places = Places(
            settings.device_idle_s,
            settings.device_capacity,
            settings.readers,
            settings.chunk_bytes,
            lambda lease, p: self._leases.give(lease, p.key, p.restore_s, p.sha256, p.fd, p.size, p.copied),
            self._leases.refuse,
        )
        self._placing = Placing(self._leases, self._hosted, self._places)
        self._lines: set[Line] = set()
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        listening.setblocking(False)
        self._again: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """Take no more clients, end the lines of those there are and let go of everything."""
        self._loop.remove_reader(self._listening.fileno())
        if self._again is not None:
            self._again.cancel()
        for line in list(self._lines):
            line.close()
        self._placing.close()
        self._places.close()
        self._hosted.close()

    # --- clients

    def _listen(self) -> None:
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.error("no client can be taken: %s", error)
            self._loop.remove_reader(self._listening.fileno())
            self._again = self._loop.call_later(AGAIN_S, self._listen)
            return
        if len(self._lines) >= MOST_LINES:
            log.error("more than %d clients: the next is turned away", MOST_LINES)
            sock.close()
        else:
            self._lines.add(Line(sock, self._heard, self._gone))

    def _gone(self, line: Line) -> None:
        self._lines.discard(line)
        for number in list(line.leases):
            self._leases.release(line, number)

    def _heard(self, line: Line, message: ToOwner, fd: int | None) -> None:
        try:
            match message:
                case Acquire():
                    self._hosted.acquire(line, message)
                case Adopt() if fd is not None:
                    self._hosted.adopt(line, message, fd)
                case Place():
                    self._placing.place(line, message)
                case AdoptCopy() if fd is not None:
                    self._placing.adopt(line, message, fd)
                case Release():
                    self._leases.release(line, message.number)
                case Ask():
                    line.send(self._told(message.number))
        except OSError as error:  # no more descriptors, say: what this was of is not had, and the line goes on
            log.error("%s of a client could not be done: %s", type(message).__name__, error)
        finally:
            if fd is not None:
                os.close(fd)

    # --- what it tells

    def _told(self, number: int) -> Told:
        table, images = self._hosted.table, self._hosted.images
        held = [images.held(entry) for entry in table.entries.values()]
        held += [copies.held(entry) for copies in self._places.all for entry in copies.table.entries.values()]
        return Told(
            number=number,
            pid=os.getpid(),
            entries=tuple(sorted(held, key=lambda each: -each.bytes)[:MOST_TOLD]),
            bytes=table.bytes,
            hits=table.hits,
            misses=table.misses,
            bytes_read=self._hosted.loader.bytes_read,
            loads=images.loads,
            evictions=images.evictions,
            uploads=sum(copies.uploads for copies in self._places.all),
            device_evictions=sum(copies.evictions for copies in self._places.all),
            device_bytes=sum(copies.table.bytes for copies in self._places.all),
        )
