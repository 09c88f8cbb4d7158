"""Copies on all devices of this machine: which there are, who has one, and when one goes (see `memory_copies`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from foreserve import clock
from foreserve.devices import VALID
from foreserve.runtime.device import DeviceError, is_identity
from foreserve.runtime.memory_copies import Copies
from foreserve.runtime.memory_entry import Arm, Effect, Entry, Give, Refuse
from foreserve.runtime.memory_source import Source
from foreserve.runtime.memory_table import Table
from foreserve.runtime.memory_timers import Timers

MOST_DEVICES: Final = 64


class Placed(NamedTuple):
    """What whoever has asked for a copy gets."""

    key: str
    restore_s: float
    sha256: str | None
    size: int
    fd: int
    copied: bool


class Places:
    """One table for each device. What is idle goes after `idle_s`; on each device there are at most `capacity` bytes.

    `give` and `refuse` are called with a lease and what became of it.
    """

    def __init__(
        self,
        idle_s: float,
        capacity: int | None,
        threads: int,
        chunk_bytes: int,
        give: Callable[[int, Placed], None],
        refuse: Callable[[int, str], None],
    ) -> None:
        self._idle_s = idle_s
        self._capacity = capacity
        self._threads = threads
        self._chunk_bytes = chunk_bytes
        self._give = give
        self._refuse = refuse
        self._timers = Timers()
        self._by_device: dict[str, Copies] = {}

    @property
    def all(self) -> Iterable[Copies]:
        """Of all devices that something was ever on."""
        return self._by_device.values()

    def close(self) -> None:
        """Stop everything and give all memory back."""
        self._timers.close()
        for copies in self.all:
            copies.close()

    def on(self, identity: str) -> Copies:
        """Those on one device, kept for good. Raises DeviceError for what is none, and beyond `MOST_DEVICES`."""
        if (copies := self._by_device.get(identity)) is None:
            if not is_identity(identity):
                raise DeviceError(f"{identity!r} is no device; valid: {VALID}")
            if len(self._by_device) >= MOST_DEVICES:
                raise DeviceError(f"copies are kept on at most {MOST_DEVICES} devices, and there are as many already")
            table = Table(self._idle_s, self._capacity, "device_gb")
            copies = Copies(
                identity,
                table,
                lambda effects: self._do(self._by_device[identity], effects),
                self._threads,
                self._chunk_bytes,
            )
            self._by_device[identity] = copies
        return copies

    def place(self, copies: Copies, lease: int, keys: Sequence[str], size: int, source: Source) -> str | None:
        """Have a copy for `lease` of the content that `keys` are identities of, made of `source`, which is ours now.

        Why it waits, in words, where there is no room and nothing that could go.
        """
        table = copies.table
        key = next((key for key in keys if table.find(key) is not None), keys[0])
        effects = table.acquire(lease, key, size, clock.now())
        if (entry := table.find(key)) is None:
            source.close()
        else:
            copies.name(entry, source)
            for other in keys:
                table.learn(entry, other)
        self._do(copies, effects, copied=False)
        if entry is None or not table.stalled(entry):
            return None
        return f"{source.source} waits until there is room for its {entry.wants} bytes on {copies.identity} (device_gb)"

    async def adopt(
        self,
        copies: Copies,
        fd: int,
        size: int,
        restore_s: float,
        lease: Callable[[int], tuple[int, Sequence[str], Source]],
    ) -> None:
        """Take over a copy that a worker has.

        `lease`, told its size, makes it, with its content's keys and source, when that is done.

        Raises EngineStartError where it is none, or by `lease`.
        """
        allocation = await copies.adopted(fd, size)
        try:
            number, keys, source = lease(allocation.size)
        except BaseException:
            await asyncio.to_thread(allocation.free)
            raise
        table = copies.table
        key = next((key for key in keys if table.find(key) is not None), keys[0])
        known = table.find(key) is not None
        effects = table.adopt(number, key, allocation.size, restore_s, clock.now())
        entry = table.find(key)
        assert entry is not None
        copies.name(entry, source)
        if not known:
            copies.adopt(entry, allocation)
        self._do(copies, effects, copied=False)  # at once: a lease may end while anything is awaited
        if known:
            await asyncio.to_thread(allocation.free)

    def release(self, copies: Copies, lease: int) -> None:
        """A lease is over."""
        self._do(copies, copies.table.release(lease, clock.now()))

    def _do(self, copies: Copies, effects: Iterable[Effect], copied: bool = True) -> None:
        """`copied`: who is given a copy now has waited for it."""
        for effect in effects:
            match effect:
                case Give(lease, entry):
                    if (allocation := copies.find(entry)) is not None:
                        key = entry.keys[0] if entry.keys else ""
                        sha256 = copies.held(entry).sha256
                        self._give(lease, Placed(key, entry.restore_s, sha256, allocation.size, allocation.fd, copied))
                case Refuse(lease, reason):
                    self._refuse(lease, reason)
                case Arm(entry, generation, at):
                    self._timers.arm(entry, at, lambda e=entry, g=generation: self._fired(copies, e, g))  # type: ignore[misc]
                case _:
                    copies.carry_out(effect)
        copies.forget()

    def _fired(self, copies: Copies, entry: Entry, generation: int) -> None:
        self._do(copies, copies.table.fired(entry, generation, clock.now()))
