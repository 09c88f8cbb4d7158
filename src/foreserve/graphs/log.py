"""The log of a graph: every batch that was taken, in order, in files that only grow.

A file `SEQUENCE.log` begins with the line `foreserve-graph-log 1` and holds entries from that sequence number on: the
length (4 bytes) and CRC-32 (4 bytes) of what follows, both little-endian, then an `Entry` in MessagePack. A writer that
starts begins a new file, so what a crash left of the last entry stays at the end of a file and is passed over. What
does not read and has a whole entry behind it, or was acknowledged, is no such end: the log is refused.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from foreserve.errors import ConfigError

ACKNOWLEDGED = "acknowledged"
"""The file that says how far the writer has come: two sequence numbers, each in 8 bytes, little-endian, twice. Never
synced, so it may lag behind the log."""

MAGIC = b"foreserve-graph-log 1\n"
MOST_ENTRY = 2**30
_HEAD = 8
_BEGINS = b"\x94"
"""How every entry begins in MessagePack: as an array of four."""


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
        self._path: Path | None = None
        self._told = os.open(folder / ACKNOWLEDGED, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            # What a writer that was killed left without waiting for the disk is taken as it is: now it has to stay.
            for path in files(folder)[-1:]:
                _sync_file(path)
            self.rotate(sequence + 1)
            self.acknowledge(sequence)
        except BaseException:
            self._let_go()
            raise

    @property
    def size(self) -> int:
        """Bytes in the file that is being written."""
        return self._size

    def rotate(self, first: int) -> None:
        """Begin a file with entry `first`. Where that fails the log goes on in the file that it has."""
        if self._fd >= 0:
            self.sync()
        path = self._folder / f"{first:020d}.log"
        if self._fd >= 0 and self._size == len(MAGIC) and path == self._path:
            return  # it is that file, and empty
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        try:
            _write(fd, MAGIC)
            os.fsync(fd)
            sync_folder(self._folder)
        except BaseException:
            os.close(fd)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                # With that file there what the one before it gets would be passed over.
                self._broken = f"{path.name}, which could not be begun, could not be taken away: {error}"
            raise
        before, self._fd = self._fd, fd
        self._path, self._size = path, len(MAGIC)
        if before >= 0:
            os.close(before)

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

    def acknowledge(self, sequence: int, durable: bool = True) -> None:
        """Let those that follow see the entries up to `sequence`, which are on the disk if `durable`."""
        os.pwrite(self._told, 2 * sequence.to_bytes(8, "little"), 0)
        if durable:
            os.pwrite(self._told, 2 * sequence.to_bytes(8, "little"), 16)

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
        try:
            if self._fd >= 0:
                self.sync()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        # Never a second time: the numbers may be somebody else's by then.
        open_ = [fd for fd in (self._fd, self._told) if fd >= 0]
        self._fd = self._told = -1
        for fd in open_:
            os.close(fd)


class Told(NamedTuple):
    """The last entry that may be seen, and the last that was told to be on the disk; 0 where nothing is said (yet)."""

    seen: int
    durable: int


def acknowledged(folder: Path) -> Told:
    """How far the writer of the log in `folder` has come."""
    try:
        data = (folder / ACKNOWLEDGED).read_bytes()
    except FileNotFoundError:
        data = b""
    found = []
    for at in (0, 16):
        # Twice the same, so that half a write is not taken for another number.
        first, second = data[at : at + 8], data[at + 8 : at + 16]
        found.append(int.from_bytes(first, "little") if first == second else 0)
    return Told(*found)


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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


def read(folder: Path, after: int, most: int | None = None) -> Iterator[Entry]:
    """The whole entries with a sequence number above `after`, in order; with `most` those up to it. Changes nothing.

    Without `most` nobody may be writing. Raises LogBroken where an entry is missing, and where what does not read is
    not the end of all.
    """
    told = acknowledged(folder).durable
    every = files(folder)
    for n, path in enumerate(every):
        if n + 1 < len(every) and first_of(every[n + 1]) <= after + 1:
            continue
        at = 0
        for entry, end in entries(path):
            at = end
            if entry.sequence <= after:
                continue
            if most is not None and entry.sequence > most:
                return
            if entry.sequence != after + 1:
                raise LogBroken(f"{path}: entry {entry.sequence} follows {after}; those between are missing")
            after = entry.sequence
            yield entry
        at = max(at, len(MAGIC))
        if most is not None or path.stat().st_size <= at:
            continue
        # A file that another one follows was whole when that began, unless a crash ended its writer.
        if n + 1 < len(every) and first_of(every[n + 1]) > after + 1:
            raise LogBroken(f"{path}: the entry at byte {at} does not read and is not the last one")
        if (behind := _whole_after(path, at, after)) is not None:
            raise LogBroken(
                f"{path}: the entry at byte {at} does not read, but entry {behind.sequence} behind it does; "
                f"restore the file, or cut it to {at} bytes to go on without what came after entry {after}"
            )
    if most is None and told > after:
        raise LogBroken(
            f"{folder}: the log reads up to entry {after}, but {told} was acknowledged; restore "
            f"{every[-1].name if every else 'its files'}, or remove the file {ACKNOWLEDGED!r} to go on without the rest"
        )


def _whole_after(path: Path, at: int, after: int) -> Entry | None:
    """A whole entry with a sequence number above `after`, anywhere behind byte `at` of a file."""
    data = path.read_bytes()
    place = data.find(_BEGINS, at + _HEAD)
    while place >= 0:
        head = data[place - _HEAD : place]
        body = memoryview(data)[place : place + int.from_bytes(head[:4], "little")]
        if len(body) == int.from_bytes(head[:4], "little") and zlib.crc32(body) == int.from_bytes(head[4:], "little"):
            try:
                entry = msgspec.msgpack.decode(body, type=Entry)
            except msgspec.MsgspecError:
                pass
            else:
                if entry.sequence > after:
                    return entry
        place = data.find(_BEGINS, place + 1)
    return None


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
