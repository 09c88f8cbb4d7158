"""The owner of this machine's read-only weights: takes clients, hands out descriptors and keeps their leases.

`memory_table` decides what stays for whom, `memory_images` does it; who asks is here. `memory_process` is its process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from foreserve import clock
from foreserve.core import WeightsRef
from foreserve.errors import EngineStartError
from foreserve.runtime.memory_copies import Copies, Source
from foreserve.runtime.memory_digests import Digests, Stat, sha256_key
from foreserve.runtime.memory_entry import Arm, Effect, Entry, Give, Refuse, State
from foreserve.runtime.memory_images import Images
from foreserve.runtime.memory_line import Line
from foreserve.runtime.memory_loader import Image, Loader, open_file
from foreserve.runtime.memory_messages import (
    MOST_TOLD,
    Acquire,
    Adopt,
    AdoptCopy,
    Ask,
    Given,
    Place,
    Refused,
    Release,
    Told,
    ToOwner,
    Waits,
)
from foreserve.runtime.memory_places import Placed, Places
from foreserve.runtime.memory_sources import is_sealed
from foreserve.runtime.memory_table import Table
from foreserve.runtime.memory_timers import Timers
from foreserve.runtime.safetensors import read

log = logging.getLogger(__name__)

MOST_LINES: Final = 1024

_NOT_YET: Final = 0
"""The lease of a copy that is being taken over, which may take a while."""

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


class _Lease(NamedTuple):
    """Whose it is, its number there, whether it is quiet, and where it is of a copy, of which."""

    line: Line
    number: int
    quiet: bool
    copies: Copies | None


class Owner:
    """Serves those who connect to `listening`, on the running loop."""

    def __init__(self, listening: socket.socket, settings: OwnerSettings) -> None:
        self._table = Table(settings.idle_s, settings.capacity)
        self._digests = Digests(Path(settings.digests) if settings.digests else None)
        self._loader = Loader(settings.readers, settings.chunk_bytes, settings.sources)
        self._images = Images(self._table, self._loader, self._digests, self._do, settings.learn_after_s)
        self._leases: dict[int, _Lease] = {}
        self._numbers = count(1)
        self._lines: set[Line] = set()
        self._timers = Timers()
        self._adopting: set[asyncio.Task[None]] = set()
        self._places = Places(
            settings.device_idle_s,
            settings.device_capacity,
            settings.readers,
            settings.chunk_bytes,
            self._placed,
            self._refuse,
        )
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
        for task in self._adopting:
            task.cancel()
        self._timers.close()
        self._places.close()
        self._images.close()

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
            self._release(line, number)

    def _heard(self, line: Line, message: ToOwner, fd: int | None) -> None:
        try:
            match message:
                case Acquire():
                    self._acquire(line, message)
                case Adopt() if fd is not None:
                    self._adopt(line, message, fd)
                case Place():
                    self._place(line, message)
                case AdoptCopy() if fd is not None:
                    line.leases.setdefault(message.number, _NOT_YET)
                    task = self._loop.create_task(self._adopt_copy(line, message, os.dup(fd)))
                    self._adopting.add(task)
                    task.add_done_callback(self._adopting.discard)
                case Release():
                    self._release(line, message.number)
                case Ask():
                    line.send(self._told(message.number))
        finally:
            if fd is not None:
                os.close(fd)

    def _acquire(self, line: Line, message: Acquire) -> None:
        ref, python = message.ref, message.python
        try:
            stat = _stat(ref)
            keys = self._digests.keys(ref, python, stat)
        except EngineStartError as error:
            line.send(Refused(message.number, str(error)))
            return
        key = next((key for key in keys if self._current(key)), keys[-1])
        lease = self._lease(line, message.number, message.quiet)
        effects = self._table.acquire(lease, key, stat.size if stat else 0, clock.now())
        if (entry := self._table.find(key)) is not None:
            self._images.name(entry, ref, python, stat)
        self._do(effects)
        if entry is not None and self._table.stalled(entry):
            reason = f"{ref.source} waits until there is room for its {entry.wants} bytes (host_gb)"
            log.warning("%s", reason)
            line.send(Waits(message.number, reason))

    def _adopt(self, line: Line, message: Adopt, fd: int) -> None:
        ref = message.ref
        try:
            if ref.kind != "file" and not is_sealed(fd):
                raise EngineStartError("it is not sealed")
            read(fd, ref.source)
            image = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        except (EngineStartError, OSError) as error:
            log.warning("what a client has of %s is not taken over: %s", ref.source, error)
            return
        stat, key, sha256 = Stat.of(fd), message.key, message.sha256
        if ref.kind == "file":  # unlike sealed memory it may have changed since that was told
            key, sha256 = self._digests.key(stat), self._digests.find(stat)
        known = self._table.find(key) is not None
        lease = self._lease(line, message.number, True)
        effects = self._table.adopt(lease, key, stat.size, message.restore_s, clock.now())
        if (entry := self._table.find(key)) is not None:
            self._images.name(entry, ref, message.python, stat if ref.kind == "file" else None)
        if known or entry is None:
            os.close(image)
        else:
            self._images.adopt(entry, Image(image, stat.size, sha256, 0, message.restore_s))
        self._do(effects)

    def _current(self, key: str) -> bool:
        """Whether there is an entry, of a file that is still what was loaded."""
        entry = self._table.find(key)
        if entry is None:
            return False
        if self._images.current(entry):
            return True
        log.warning("a file was changed while it is in use; who starts from now on gets what it is now: %s", key)
        self._do(self._table.forget(entry))
        return False

    # --- copies on devices

    def _place(self, line: Line, message: Place) -> None:
        try:
            entry, image = self._of(line, message.of)
            if not self._images.current(entry):
                # A copy of what the file is now would go by the name and the digest of what it was.
                self._do(self._table.forget(entry))
                raise EngineStartError("its file was changed after it was loaded; who starts anew gets what it is now")
            source = Source(image.fd, self._images.held(entry))
        except (EngineStartError, OSError) as error:
            line.send(Refused(message.number, str(error)))
            return
        copies = self._places.on(message.device)
        lease = self._lease(line, message.number, False, copies)
        if reason := self._places.place(copies, lease, _keys(entry, image), image.size, source):
            log.warning("%s", reason)
            line.send(Waits(message.number, reason))

    async def _adopt_copy(self, line: Line, message: AdoptCopy, fd: int) -> None:
        copies = self._places.on(message.device)

        def lease() -> tuple[int, Sequence[str], Source]:
            entry, image = self._of(line, message.of)
            if message.number not in line.leases:
                raise EngineStartError("it was let go of meanwhile")
            made = self._lease(line, message.number, True, copies)
            return made, _keys(entry, image), Source(image.fd, self._images.held(entry))

        try:
            await self._places.adopt(copies, fd, message.size, message.restore_s, lease)
        except (EngineStartError, OSError) as error:
            self._release(line, message.number)
            log.warning("what a client has on %s is not taken over: %s", message.device, error)
        finally:
            os.close(fd)

    def _of(self, line: Line, number: int) -> tuple[Entry, Image]:
        """What this lease has in the host's memory. Raises EngineStartError where it has nothing there."""
        lease = line.leases.get(number)
        entry = None if lease is None else self._table.holders().get(lease)
        image = None if entry is None or entry.state is not State.READY else self._images.find(entry)
        if entry is None or image is None:
            raise EngineStartError("a copy is made of what is held in this machine's memory, and this is not")
        return entry, image

    def _placed(self, lease: int, placed: Placed) -> None:
        line, number, quiet, _ = self._leases[lease]
        given = Given(number, placed.key, placed.restore_s, placed.sha256, placed.size, placed.copied)
        line.send(given, None if quiet else placed.fd)

    # --- leases

    def _lease(self, line: Line, number: int, quiet: bool, copies: Copies | None = None) -> int:
        self._release(line, number)
        lease = line.leases[number] = next(self._numbers)
        self._leases[lease] = _Lease(line, number, quiet, copies)
        return lease

    def _release(self, line: Line, number: int) -> None:
        if (lease := line.leases.pop(number, None)) is not None:
            one = self._leases.pop(lease, None)
            if one is not None and one.copies is not None:
                self._places.release(one.copies, lease)
            elif one is not None:
                self._do(self._table.release(lease, clock.now()))

    def _give(self, lease: int, entry: Entry) -> None:
        line, number, quiet, _ = self._leases[lease]
        if (image := self._images.find(entry)) is not None:
            key = entry.keys[0] if entry.keys else ""
            line.send(Given(number, key, entry.restore_s, image.sha256), None if quiet else image.fd)

    def _refuse(self, lease: int, reason: str) -> None:
        line, number, _, _ = self._leases.pop(lease)
        del line.leases[number]
        line.send(Refused(number, reason))

    # --- what the table wants

    def _do(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Give(lease, entry):
                    self._give(lease, entry)
                case Refuse(lease, reason):
                    self._refuse(lease, reason)
                case Arm(entry, generation, at):
                    self._timers.arm(entry, at, lambda e=entry, g=generation: self._fired(e, g))  # type: ignore[misc]
                case _:
                    self._images.carry_out(effect)

    def _fired(self, entry: Entry, generation: int) -> None:
        self._do(self._table.fired(entry, generation, clock.now()))

    # --- what it tells

    def _told(self, number: int) -> Told:
        held = [self._images.held(entry) for entry in self._table.entries.values()]
        held += [copies.held(entry) for copies in self._places.all for entry in copies.table.entries.values()]
        return Told(
            number=number,
            pid=os.getpid(),
            entries=tuple(sorted(held, key=lambda each: -each.bytes)[:MOST_TOLD]),
            bytes=self._table.bytes,
            hits=self._table.hits,
            misses=self._table.misses,
            bytes_read=self._loader.bytes_read,
            loads=self._images.loads,
            evictions=self._images.evictions,
            uploads=sum(copies.uploads for copies in self._places.all),
            device_evictions=sum(copies.evictions for copies in self._places.all),
            device_bytes=sum(copies.table.bytes for copies in self._places.all),
        )


def _keys(entry: Entry, image: Image) -> list[str]:
    """Of its content; one whose file has changed since has none that others share.

    Where two files were loaded before they were known to be equal, one of them has not the key that both could have.
    """
    if not entry.keys:
        return [f"entry:{entry.number}"]
    known = [] if image.sha256 is None else [sha256_key(image.sha256)]
    return [*dict.fromkeys([*known, *entry.keys])]


def _stat(ref: WeightsRef) -> Stat | None:
    """Of a file, as it stands. Raises EngineStartError when it cannot be opened."""
    if ref.kind != "file":
        return None
    fd = open_file(ref.source)
    try:
        return Stat.of(fd)
    finally:
        os.close(fd)
