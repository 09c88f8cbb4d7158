"""What a file's content is known by: its SHA-256 as far as it was learned, else the file itself as it stands.

Two names lead to the same memory only when these are equal.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from foreserve.core import WeightsRef
from foreserve.errors import EngineStartError

log = logging.getLogger(__name__)

REMEMBERED: Final = 4096
"""Digests that are kept; the oldest goes first."""


class Stat(msgspec.Struct, frozen=True):
    """A file as it stands: what was learned of its content holds while this stays equal."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, fd: int) -> Stat:
        """Of an open file."""
        stat = os.fstat(fd)
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)

    @property
    def key(self) -> str:
        """Its identity as long as its digest is not known."""
        return f"file:{self.device}:{self.inode}:{self.size}:{self.mtime_ns}"


def sha256_key(sha256: str) -> str:
    """The identity of a content whose digest is known."""
    return f"sha256:{sha256}"


class Digests:
    """Digests by file, kept in `path` (`None`: nowhere). Several processes may learn; the last word on a file stays."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, str] = self._read()

    def key(self, stat: Stat) -> str:
        """The identity of a file's content."""
        known = self.find(stat)
        return sha256_key(known) if known else stat.key

    def keys(self, ref: WeightsRef, python: str, stat: Stat | None) -> list[str]:
        """Identities under which `ref` may be there; the last is its own, under which it is loaded.

        `stat` is that of a file. What is not known to have the digest that `ref` wants gets an identity that nobody
        without that wish shares, since loading it may fail for it. Raises EngineStartError when it is known to differ.
        """
        wanted = ref.sha256.lower() if ref.sha256 else None
        if stat is None:
            own = f"{ref.kind}:{ref.source}"
            if ref.kind == "loader":
                own += f"@{python}{_version(ref)}"
        else:
            known = self.find(stat)
            if wanted and known not in (wanted, None):
                raise EngineStartError(f"{ref.source} has the SHA-256 {known}, not {wanted}")
            own = self.key(stat)
        if not wanted:
            return [own]
        checked = sha256_key(wanted)
        return [checked] if own == checked else [checked, f"{own}={wanted}"]

    def find(self, stat: Stat) -> str | None:
        """The SHA-256 (hex) of the file's content, where it was learned."""
        return self._known.get(stat.key)

    def learn(self, stat: Stat, sha256: str) -> None:
        """Remember it. Where it cannot be kept it holds for this process."""
        known = self._known | self._read() | self._known
        known.pop(stat.key, None)
        known[stat.key] = sha256
        self._known = dict(list(known.items())[-REMEMBERED:])
        if self._path is None:
            return
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(msgspec.json.format(msgspec.json.encode(self._known)))
            partial.replace(self._path)
        except OSError as error:
            log.warning("digests of weights are not kept: %s", error)

    def _read(self) -> dict[str, str]:
        if self._path is None:
            return {}
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):
            return {}


def _version(ref: WeightsRef) -> str:
    """A loader whose file was changed is another."""
    path = ref.source.rpartition(":")[0]
    if path.endswith(".py"):
        with suppress(OSError):
            return f"@{os.stat(path).st_mtime_ns}"
    return ""
