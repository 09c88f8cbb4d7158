"""Things made once and kept: built under a lock and a temporary name, renamed into place when whole.

A crash in the middle leaves nothing half done under the final name; several processes that want the same thing build
it once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from foreserve.errors import ConfigError

log = logging.getLogger(__name__)

CHUNK_BYTES = 4 * 2**20
REMEMBERED = 256
"""Digests kept in `digests.json`; the oldest goes first."""


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """A file's SHA-256 as long as its size (bytes) and modification time (ns) stay as they were."""

    size: int
    mtime_ns: int
    sha256: str


class Cache:
    """The folder `root` and what was made in it. Made on first use; raises ConfigError where it cannot be written."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: str) -> Path | None:
        """The finished folder of `key`, or `None`. Builds nothing and waits for nobody."""
        path = self.root / key
        return path if path.is_dir() else None

    def prepared(self, key: str, build: Callable[[Path], None]) -> Path:
        """The folder of `key`, which `build(folder)` fills if it is not there yet.

        A concurrent builder of the same key waits for the first, and builds itself if that one failed. What a
        builder holds is released by the kernel when its process ends, so the wait is no longer than its work.
        """
        final = self.root / key
        if final.is_dir():
            return final
        with self._lock(key):
            if final.is_dir():
                return final
            partial = self.root / f".{key}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # left by a builder that was killed
            try:
                partial.mkdir()
                build(partial)
                _sync(partial)
                partial.rename(final)
            except OSError as error:
                raise ConfigError(f"preparing a model in the cache {self.root} failed: {error}") from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return final

    def digest(self, path: Path, progress: Callable[[float, str], None] | None = None) -> str:
        """SHA-256 (hex) of a file's content; not read again while its size and modification time stay."""
        path = path.resolve()
        stat = path.stat()
        known = self._digests().get(str(path))
        if known and (known.size, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return known.sha256
        sha, done = hashlib.sha256(), 0
        with path.open("rb") as file:
            while block := file.read(CHUNK_BYTES):
                sha.update(block)
                done += len(block)
                if progress:
                    progress(min(1.0, done / max(1, stat.st_size)), f"reading {path.name}")
        self._remember(str(path), Digest(size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha.hexdigest()))
        return sha.hexdigest()

    def _digests(self) -> dict[str, Digest]:
        try:
            return msgspec.json.decode((self.root / "digests.json").read_bytes(), type=dict[str, Digest])
        except (OSError, msgspec.DecodeError):
            return {}

    def _remember(self, path: str, digest: Digest) -> None:
        with self._lock("digests"):
            digests = self._digests()
            digests.pop(path, None)
            digests[path] = digest
            kept = dict(list(digests.items())[-REMEMBERED:])
            partial = self.root / ".digests.partial"
            partial.write_bytes(msgspec.json.format(msgspec.json.encode(kept)))
            partial.replace(self.root / "digests.json")

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / f".{key}.lock").open("w")
        except OSError as error:
            raise ConfigError(f"cannot write the model cache {self.root}: {error}; set FORESERVE_CACHE") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("waiting for another process that prepares %s", key)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _sync(folder: Path) -> None:
    """Put the folder's content on the disk, so that the rename never outlives what it names."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
