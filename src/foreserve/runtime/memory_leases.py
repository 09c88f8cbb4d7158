"""Who holds what: the leases of all clients, by numbers of ours, each with what is done when it is over."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from foreserve.runtime.memory_line import Line
from foreserve.runtime.memory_messages import Given, Refused


class _Lease(NamedTuple):
    line: Line
    number: int
    quiet: bool
    over: Callable[[int], None]


class Leases:
    """A client's number means one lease at a time: a new one ends that before."""

    def __init__(self) -> None:
        self._all: dict[int, _Lease] = {}
        self._numbers = count(1)

    def make(self, line: Line, number: int, quiet: bool, over: Callable[[int], None], *, copy: bool = False) -> int:
        """A new one; `over(lease)` is called when its client ends it, and not when it is refused."""
        self.release(line, number)
        lease = line.leases[number] = next(self._numbers)
        if copy:
            line.copies.add(number)
        self._all[lease] = _Lease(line, number, quiet, over)
        return lease

    def release(self, line: Line, number: int) -> None:
        """Its client ends it. One that is over is none."""
        lease = line.leases.pop(number, None)
        line.copies.discard(number)
        if lease is not None:
            self._all.pop(lease).over(lease)

    def give(self, lease: int, key: str, restore_s: float, sha256: str | None, fd: int, size: int = 0,
             copied: bool = False) -> None:  # fmt: skip
        """What it is of is there."""
        line, number, quiet, _ = self._all[lease]
        line.send(Given(number, key, restore_s, sha256, size, copied), None if quiet else fd)

    def refuse(self, lease: int, reason: str) -> None:
        """It is over: what it is of cannot be had."""
        line, number, _, _ = self._all.pop(lease)
        del line.leases[number]
        line.copies.discard(number)
        line.send(Refused(number, reason))
