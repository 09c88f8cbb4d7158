"""Images in the host's memory for those who ask: finds the entry, keeps the lease, says what came of it.

`memory_table` decides what stays for whom, `memory_images` does it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from typing import NamedTuple

from foreserve import clock
from foreserve.core import WeightsRef
from foreserve.errors import EngineStartError
from foreserve.runtime.memory_digests import Digests, Stat, sha256_key
from foreserve.runtime.memory_entry import Arm, Effect, Entry, Give, Refuse, State
from foreserve.runtime.memory_images import Images
from foreserve.runtime.memory_leases import Leases
from foreserve.runtime.memory_line import Line
from foreserve.runtime.memory_loader import Image, Loader, open_file
from foreserve.runtime.memory_messages import Acquire, Adopt, Refused, Waits
from foreserve.runtime.memory_source import Source
from foreserve.runtime.memory_sources import is_sealed
from foreserve.runtime.memory_table import Table
from foreserve.runtime.memory_timers import Timers
from foreserve.runtime.safetensors import read

log = logging.getLogger(__name__)


class Original(NamedTuple):
    """What a copy is made of: identities of its content, the bytes of its image, and the image."""

    keys: list[str]
    size: int
    source: Source


class Hosted:
    """`table`, `images` and `loader` are there to be told of."""

    def __init__(self, leases: Leases, table: Table, loader: Loader, digests: Digests, learn_after_s: float) -> None:
        self.table = table
        self.loader = loader
        self.images = Images(table, loader, digests, self._do, learn_after_s)
        self._digests = digests
        self._leases = leases
        self._timers = Timers()
        self._parked: dict[int, list[asyncio.Future[None]]] = {}

    def close(self) -> None:
        """Stop everything and give all memory back."""
        self._timers.close()
        self.images.close()

    def acquire(self, line: Line, message: Acquire) -> None:
        """Lease what is asked for, or refuse it."""
        ref, python = message.ref, message.python
        try:
            stat = _stat(ref)
            keys = self._digests.keys(ref, python, stat)
        except EngineStartError as error:
            line.send(Refused(message.number, str(error)))
            return
        key = next((key for key in keys if self._current(key)), keys[-1])
        lease = self._leases.make(line, message.number, message.quiet, self._over)
        effects = self.table.acquire(lease, key, stat.size if stat else 0, clock.now())
        if (entry := self.table.find(key)) is not None:
            self.images.name(entry, ref, python, stat)
        self._do(effects)
        if entry is not None and self.table.stalled(entry):
            reason = f"{ref.source} waits until there is room for its {entry.wants} bytes (host_gb)"
            log.warning("%s", reason)
            line.send(Waits(message.number, reason))

    def adopt(self, line: Line, message: Adopt, fd: int) -> None:
        """Take over what a client has of an owner before us; `fd` stays the caller's."""
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
        known = self.table.find(key) is not None
        lease = self._leases.make(line, message.number, True, self._over)
        effects = self.table.adopt(lease, key, stat.size, message.restore_s, clock.now())
        if (entry := self.table.find(key)) is not None:
            self.images.name(entry, ref, message.python, stat if ref.kind == "file" else None)
        if known or entry is None:
            os.close(image)
        else:
            self.images.adopt(entry, Image(image, stat.size, sha256, 0, message.restore_s))
        self._do(effects)

    def _current(self, key: str) -> bool:
        """Whether there is an entry, of a file that is still what was loaded."""
        entry = self.table.find(key)
        if entry is None:
            return False
        if self.images.current(entry):
            return True
        log.warning("a file was changed while it is in use; who starts from now on gets what it is now: %s", key)
        self._do(self.table.forget(entry))
        return False

    # --- what copies are made of

    def ready(self, line: Line, number: int) -> asyncio.Future[None]:
        """Done once what this lease is of is there, or it is over."""
        lease = line.leases.get(number)
        entry = None if lease is None else self.table.holders().get(lease)
        parked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if lease is None or entry is None or entry.state is State.READY:
            parked.set_result(None)
        else:
            self._parked.setdefault(lease, []).append(parked)
        return parked

    def original(self, line: Line, number: int) -> Original:
        """Of what this lease has. Raises EngineStartError where it has nothing, or not any more; OSError."""
        lease = line.leases.get(number)
        entry = None if lease is None else self.table.holders().get(lease)
        image = None if entry is None or entry.state is not State.READY else self.images.find(entry)
        if entry is None or image is None:
            raise EngineStartError("a copy is made of what is held in this machine's memory, and this is not")
        if not self.images.current(entry):
            self._do(self.table.forget(entry))
        return Original(_keys(entry, image), image.size, self.images.source(entry))

    def _settled(self, lease: int) -> None:
        for parked in self._parked.pop(lease, ()):
            if not parked.done():
                parked.set_result(None)

    # --- what the table wants

    def _over(self, lease: int) -> None:
        self._do(self.table.release(lease, clock.now()))
        self._settled(lease)

    def _do(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Give(lease, entry):
                    if (image := self.images.find(entry)) is not None:
                        key = entry.keys[0] if entry.keys else ""
                        self._leases.give(lease, key, entry.restore_s, image.sha256, image.fd)
                    self._settled(lease)
                case Refuse(lease, reason):
                    self._leases.refuse(lease, reason)
                    self._settled(lease)
                case Arm(entry, generation, at):
                    self._timers.arm(entry, at, lambda e=entry, g=generation: self._fired(e, g))  # type: ignore[misc]
                case _:
                    self.images.carry_out(effect)
        self.images.forget()

    def _fired(self, entry: Entry, generation: int) -> None:
        self._do(self.table.fired(entry, generation, clock.now()))


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
