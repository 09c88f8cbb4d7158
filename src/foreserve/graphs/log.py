"""The log of a graph: every batch that was taken, in order, in files that only grow.

A file `SEQUENCE.log` begins with the line `foreserve-graph-log 1` and holds entries from that sequence number on: the
length (4 bytes) and CRC-32 (4 bytes) of what follows, both little-endian, then an `Entry` in MessagePack. A writer that
starts begins a new file, so what a crash left of the last entry stays at the end of a file and is passed over.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from foreserve.errors import ConfigError

MAGIC = b"foreserve-graph-log 1\n"
MOST_ENTRY = 2**30
_HEAD = 8


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A batch as it was applied: its place in the sequence, the wall time, the keys of the updates that it joins."""

    sequence: int
    at: float
    keys: tuple[str, ...]
    changes: bytes


class LogBroken(ConfigError):
    """The log cannot be read, or cannot be trusted any more; the message names the file and the place."""


class Log:
    """The end of the log, for its one writer. `folder` is there; nobody else writes into it."""

    def __init__(self, folder: Path, sequence: int, file_bytes: int = 2**28) -> None:
        """Go on after entry `sequence`, in a new file."""
        self._folder = folder
        self._file_bytes = file_bytes
        self._broken: str | None = None
        self._size = 0
        self._before = 0
        self._fd = -1
        self.rotate(sequence + 1)

    @property
    def size(self) -> int:
        """Bytes in the file that is being written."""
        return self._size

    def rotate(self, first: int) -> None:
        """Begin a file with entry `first`."""
        if self._fd >= 0:
            self.sync()
            os.close(self._fd)
        path = self._folder / f"{first:020d}.log"
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        os.write(self._fd, MAGIC)
        self._size = len(MAGIC)
        os.fsync(self._fd)
        sync_folder(self._folder)

    def append(self, entry: Entry) -> None:
        """Write an entry behind the others. It is durable after the next `sync`. Raises LogBroken, OSError."""
        self._check()
        data = msgspec.msgpack.encode(entry)
        if len(data) > MOST_ENTRY:
            raise ConfigError(f"a batch of {len(data)} bytes is too large for the log; at most {MOST_ENTRY}")
        if self._size > self._file_bytes:
            self.rotate(entry.sequence)
        try:
            _write(self._fd, len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little") + data)
        except OSError:
            # Half an entry must not stay before a whole one.
            self._cut()
            raise
        self._before = self._size
        self._size += _HEAD + len(data)

    def undo(self) -> None:
        """Take back the last entry, which was not applied. Where that fails the log takes nothing more."""
        self._size = self._before
        self._cut()

    def _cut(self) -> None:
        try:
            os.ftruncate(self._fd, self._size)
            os.lseek(self._fd, self._size, os.SEEK_SET)
        except OSError as error:
            self._broken = f"it could not be cut back to its last whole entry: {error}"

    def sync(self) -> None:
        """Wait until all that was appended is on the disk. After a failure nothing more is taken: what of it is there
        nobody knows. Raises LogBroken."""
        self._check()
        try:
            os.fsync(self._fd)
        except OSError as error:
            self._broken = f"it could not be brought to the disk: {error}"
            self._check()

    def _check(self) -> None:
        if self._broken is not None:
            raise LogBroken(f"the log in {self._folder} takes nothing more: {self._broken}; restart the service")

    def close(self) -> None:
        """Bring it to the disk."""
        if self._fd >= 0:
            try:
                self.sync()
            finally:
                os.close(self._fd)
                self._fd = -1


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(folder: Path) -> None:
    """Make new and renamed files of a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def files(folder: Path) -> list[Path]:
    """The files of a log, oldest first."""
    return sorted(path for path in folder.glob("*.log") if path.stem.isdigit())


def first_of(path: Path) -> int:
    """The sequence number of the first entry that a file may have."""
    return int(path.stem)


def read(folder: Path, after: int) -> Iterator[Entry]:
    """The whole entries with a sequence number above `after`, in order. Changes nothing.

    Raises LogBroken where an entry is missing, and where what does not read is not the end of all.
    """
    every = files(folder)
    for n, path in enumerate(every):
        if n + 1 < len(every) and first_of(every[n + 1]) <= after + 1:
            continue
        at = 0
        for entry, end in entries(path):
            at = end
            if entry.sequence <= after:
                continue
            if entry.sequence != after + 1:
                raise LogBroken(f"{path}: entry {entry.sequence} follows {after}; those between are missing")
            after = entry.sequence
            yield entry
        # A file that another one follows was whole when that began, unless a crash ended its writer.
        if n + 1 < len(every) and path.stat().st_size > max(at, len(MAGIC)) and first_of(every[n + 1]) > after + 1:
            raise LogBroken(f"{path}: the entry at byte {at} does not read and is not the last one")


def entries(path: Path, start: int = 0) -> Iterator[tuple[Entry, int]]:
    """The whole entries of a file from byte `start` on (0: the first), each with the byte behind it.

    Ends before what is not whole. Raises LogBroken for a file that is no log.
    """
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
        if magic != MAGIC:
            if MAGIC.startswith(magic):
                return  # a crash came first
            raise LogBroken(f"{path} is no log of a graph: it begins with {magic!r}")
        at = max(start, len(MAGIC))
        file.seek(at)
        while len(head := file.read(_HEAD)) == _HEAD:
            length = int.from_bytes(head[:4], "little")
            data = file.read(length) if length <= MOST_ENTRY else b""
            if len(data) < length or zlib.crc32(data) != int.from_bytes(head[4:], "little"):
                return
            at += _HEAD + length
            yield msgspec.msgpack.decode(data, type=Entry), at
