"""Rows that survive a restart: one SQLite file, written by one thread in batches out of a bounded buffer.

Whoever records never waits, and what does not fit is dropped and counted. Several processes may read the file and
write to it; each change is one transaction.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from foreserve.errors import ConfigError
from foreserve.settings import Environment, StateSettings

log = logging.getLogger(__name__)

R = TypeVar("R")

BUFFER_ROWS = 8192
BATCH_ROWS = 1024
LINGER_S = 0.1
"""How long the writer waits for more rows after the first of a batch, so that a busy server commits seldom."""


class RowWriter(Generic[R]):
    """Writes rows to a file that is ready. `dropped` counts those that were lost to a full buffer or a failing disk.

    `insert` writes one batch, within a transaction that is the caller's; it runs in the writer's thread. `what` is how
    the file is called in the log.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        insert: Callable[[sqlite3.Connection, Sequence[R]], None],
        buffer_rows: int = BUFFER_ROWS,
    ) -> None:
        self.dropped = 0
        self._path = path
        self._what = what
        self._insert = insert
        self._buffer: queue.Queue[tuple[R] | threading.Event | None] = queue.Queue(buffer_rows)
        self._hurry = threading.Event()
        self._closed = False
        self._writer = threading.Thread(target=self._write, name=f"foreserve-{path.stem}", daemon=True)
        self._writer.start()

    def put(self, row: R) -> None:
        """Keep this row. Never waits."""
        try:
            if self._closed:
                raise queue.Full
            self._buffer.put_nowait((row,))
        except queue.Full:
            self.dropped += 1

    def flush(self, limit_s: float = 5.0) -> bool:
        """Wait until all that was put before is written or lost; False when that took longer than `limit_s`."""
        written = threading.Event()
        return self._closed or (self._tell(written, limit_s) and written.wait(limit_s))

    def close(self, limit_s: float = 5.0) -> None:
        """Write what is left, for at most about `limit_s`, and end the writer. Idempotent."""
        if not self._closed:
            self._closed = True
            self._tell(None, limit_s)
        self._writer.join(limit_s)

    def _tell(self, item: threading.Event | None, limit_s: float) -> bool:
        self._hurry.set()
        try:
            self._buffer.put(item, timeout=limit_s)
        except queue.Full:
            return False
        return True

    # --- the writer's thread

    def _write(self) -> None:
        told, problem = 0, "the buffer was full"
        database: sqlite3.Connection | None = None
        while True:
            rows, last = self._batch()
            try:
                if rows:
                    # Opened here, and again after a failure: a file that cannot be opened now costs its batch too.
                    database = database or connect(self._path)
                    with database:
                        self._insert(database, rows)
            except Exception as error:  # a row that SQLite cannot hold costs its batch, not all that come later
                self.dropped += len(rows)
                problem = str(error)
            if self.dropped > 2 * told:
                told = self.dropped
                log.warning("%s %s has lost %d rows so far: %s", self._what, self._path, told, problem)
            if isinstance(last, threading.Event):
                last.set()
            elif last is None:
                break
        if database is not None:
            database.close()

    def _batch(self) -> tuple[list[R], tuple[R] | threading.Event | None]:
        """The rows that have come, once something has, and what ended the batch: a flush, the end, or its last row."""
        rows: list[R] = []
        item = self._buffer.get()
        if isinstance(item, tuple):
            self._hurry.wait(LINGER_S)
        self._hurry.clear()
        while isinstance(item, tuple):
            rows.append(item[0])
            if len(rows) == BATCH_ROWS or self._buffer.empty():
                break
            item = self._buffer.get_nowait()
        return rows, item


def state_folder(settings: StateSettings) -> Path:
    """Where state is kept: `state.folder`, or `FORESERVE_STATE` when the settings name none."""
    return Path(settings.folder).expanduser() if settings.folder else Environment.read().state


def connect(path: Path) -> sqlite3.Connection:
    """A connection that waits up to 5 s for other writers, and may be used in another thread."""
    database = sqlite3.connect(path, timeout=5.0, check_same_thread=False)
    try:
        database.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error:
        database.close()
        raise
    return database


class Tables:
    """What a file holds: how it is called, its tables as SQL, and their version, kept in the file's `user_version`."""

    def __init__(self, what: str, sql: str, version: int, instead: str, later: Sequence[str] = ()) -> None:
        """`sql` makes the tables of version 1; each of `later` brings them one version further, and keeps their rows.

        `instead` ends the error about a folder that cannot be written: which setting does without the file.
        """
        self.what = what
        self.sql = sql
        self.version = version
        self.instead = instead
        self.later = tuple(later)

    def make_ready(self, path: Path) -> None:
        """Make the file where it is not there; one that is damaged is set aside with a warning.

        Raises ConfigError when the folder cannot be written or the file is of a newer version.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                self._open(path)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                aside = _set_aside(path)
                log.warning("%s %s is damaged (%s): kept as %s, a new one begins", self.what, path, error, aside)
                self._open(path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"{self.what} {path} cannot be written: {error}; valid: a folder that can be written, as "
                f"`state.folder` or FORESERVE_STATE, or {self.instead}"
            ) from None

    def _open(self, path: Path) -> None:
        with closing(sqlite3.connect(path, timeout=5.0, isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            with _exclusive(database):
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if version > self.version:
                    raise ConfigError(
                        f"{self.what} {path} was written by a newer Foreserve (schema {version}, this one knows up to "
                        f"{self.version}); upgrade, or name another folder as `state.folder` or FORESERVE_STATE"
                    )
                for step in (self.sql, *self.later)[version:]:
                    for statement in step.split(";"):
                        database.execute(statement)
                database.execute(f"PRAGMA user_version = {self.version}")
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                database.execute(f'SELECT * FROM "{table}" ORDER BY rowid DESC LIMIT 1').fetchall()


@contextmanager
def _exclusive(database: sqlite3.Connection) -> Iterator[None]:
    """Two servers that start on one folder make its tables one after the other."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _set_aside(path: Path) -> Path:
    """Only the last damaged file is kept, so that a failing disk does not fill."""
    aside = path.with_name(f"{path.stem}.damaged{path.suffix}")
    for end in ("", "-wal", "-shm"):
        part = path.with_name(path.name + end)
        if part.exists():
            part.replace(aside.with_name(aside.name + end))
    return aside
