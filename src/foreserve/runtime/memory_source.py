"""The host's copy of weights as a copy on a device is made of it."""

from __future__ import annotations

import os

from foreserve.runtime.memory_digests import Stat
from foreserve.runtime.memory_messages import Held
from foreserve.runtime.safetensors import data_begin


class Source:
    """The host's copy, by a descriptor of its own, and what it is called there."""

    def __init__(self, fd: int, held: Held, stat: Stat | None = None) -> None:
        """`stat` is that of the file when it was loaded. Raises OSError."""
        self._fd = os.dup(fd)
        self._stat = Stat.of(fd) if stat is None else stat
        self.names = held.names
        self.source = held.source
        self.kind = held.kind
        self.sha256 = held.sha256
        self.marks = held.marks

    @property
    def fd(self) -> int:
        """Open until `close`."""
        return self._fd

    @property
    def current(self) -> bool:
        """Whether it is what it was when it was loaded."""
        return Stat.of(self._fd) == self._stat

    @property
    def data(self) -> tuple[int, int]:
        """Where in it the bytes of a copy begin and end. Raises EngineStartError."""
        return data_begin(self._fd), os.fstat(self._fd).st_size

    def close(self) -> None:
        """Does nothing the second time."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
