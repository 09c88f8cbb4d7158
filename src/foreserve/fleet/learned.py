"""What workers of the same imports were seen to import later, and which of it may be imported before: no process."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

import msgspec

log = logging.getLogger(__name__)

MOST_CHARACTERS: Final = 96 << 10
"""Of the names in one `Learned`: they have to fit a packet to who imports them."""

MOST_LEARNED: Final = 64
"""Imports of which it is remembered; those that were used least lately go first."""


class Learned(msgspec.Struct, kw_only=True):
    """Of one interpreter and list of imports. What was learned under one `mark` holds under no other.

    `modules` are in the order in which they are to be imported, `bad` those that a process that forks cannot import,
    and why. `took_s` is how long it took to import all that may be, `None` while that has not been done. Where
    `refused` is not empty, nothing may be imported before, and this is why.
    """

    python: str
    imports: tuple[str, ...]
    mark: str = ""
    modules: list[str] = []
    bad: dict[str, str] = {}
    took_s: float | None = None
    refused: str = ""

    def under(self, mark: str) -> None:
        """Forget all that was learned under another mark."""
        if mark != self.mark:
            self.mark = mark
            self.modules, self.bad, self.took_s, self.refused = [], {}, None, ""

    def add(self, modules: Iterable[str]) -> None:
        """A worker has imported these, in this order. Those beyond what is held are not taken."""
        known = set(self.modules)
        room = MOST_CHARACTERS - sum(len(name) + 4 for name in known)
        for name in modules:
            if name not in known:
                room -= len(name) + 4
                if room < 0:
                    break
                self.modules.append(name)

    def missing(self, there: Collection[str]) -> tuple[str, ...]:
        """What may be imported and is not `there`."""
        if self.refused:
            return ()
        return tuple(name for name in self.modules if name not in self.bad and name not in there)


class Remembered:
    """Every `Learned`, kept in `path` (`None`: nowhere). Several servers may write it; each keeps what others wrote."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[tuple[str, tuple[str, ...]], Learned] = {}

    def load(self) -> None:
        """Take up what was kept. A file that cannot be read is as none."""
        self._known = {(one.python, one.imports): one for one in self._read()} | self._known

    def of(self, python: str, imports: tuple[str, ...]) -> Learned:
        """What is learned of these goes into this object."""
        key = python, imports
        found = self._known.pop(key, None) or Learned(python=python, imports=imports)
        self._known[key] = found
        while len(self._known) > MOST_LEARNED:
            del self._known[next(iter(self._known))]
        return found

    def snapshot(self, learned: Learned) -> bytes:
        """To be given to `keep`, which may run in another thread."""
        return msgspec.json.encode(learned)

    def keep(self, snapshot: bytes) -> None:
        """Write one to the file. Where that fails it holds as long as this process."""
        if self._path is None:
            return
        new = msgspec.json.decode(snapshot, type=Learned)
        others = [one for one in self._read() if (one.python, one.imports) != (new.python, new.imports)]
        every = [*others, new][-MOST_LEARNED:]
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(msgspec.json.format(msgspec.json.encode(every)))
            partial.replace(self._path)
        except OSError as error:
            log.warning("what workers import is not remembered: %s", error)

    def _read(self) -> list[Learned]:
        if self._path is None:
            return []
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[Learned])
        except (OSError, msgspec.DecodeError):
            return []
