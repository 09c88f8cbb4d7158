"""What services have learned from: a row for each answer whose length is known, in SQLite, for a bounded time.

A row has numbers (features), never a text. Beside the rows stands what was made of them: when each service's model was
trained, up to which row, and whether it has to be trained anew because rows of it were deleted.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self
from urllib.parse import quote

import msgspec

from foreserve.errors import ConfigError
from foreserve.rows import RowWriter, Tables, connect

SCHEMA = 1
"""The version kept in the file's `user_version`; a file of a newer one is refused."""

_TABLES = Tables(
    "the learning store",
    """
CREATE TABLE samples (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    service TEXT NOT NULL, tenant TEXT NOT NULL, at REAL NOT NULL,
    features BLOB NOT NULL, tokens INTEGER NOT NULL, censored INTEGER NOT NULL
);
CREATE INDEX samples_service ON samples (service, n);
CREATE INDEX samples_tenant ON samples (tenant, service);
CREATE TABLE models (
    service TEXT PRIMARY KEY, at REAL NOT NULL, newest INTEGER NOT NULL,
    forgotten INTEGER NOT NULL, known INTEGER NOT NULL
);
CREATE TABLE notes (service TEXT PRIMARY KEY, data BLOB NOT NULL)
""",
    SCHEMA,
    "`state.history: false`",
)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of one request: `at` is in seconds since the epoch, `features` are the predictor's own bytes.

    `censored`: the answer was cut at `tokens`. `n` is the row's place in the store, 0 before it has one.
    """

    service: str
    tenant: str
    at: float
    features: bytes
    tokens: int
    censored: bool = False
    n: int = 0


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """How much of one service is kept: the newest `rows`, none older than `days`."""

    rows: int
    days: float


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """A service's model: when it was trained (seconds since the epoch) and the newest row there was then.

    `forgotten` counts how often rows of the service have been deleted on request, `known` how often they had been when
    the samples of this model were read.
    """

    at: float
    newest: int
    forgotten: int = 0
    known: int = 0

    @property
    def stale(self) -> bool:
        """Whether it may have been trained with rows that were deleted since."""
        return self.forgotten > self.known


def samples_file(folder: Path) -> Path:
    """The store in a state folder."""
    return folder / "learning.sqlite3"


def model_file(folder: Path, service: str) -> Path:
    """Where a service's model is kept in a state folder."""
    return folder / "models" / f"{quote(service, safe='')}.length"


def read(path: Path, service: str, limit: int) -> list[Sample]:
    """The newest `limit` rows of a service, oldest first, also beside who writes them. Keep it off the loop."""
    columns = "service, tenant, at, features, tokens, censored, n"
    with closing(connect(path)) as database:
        rows = database.execute(
            f"SELECT {columns} FROM samples WHERE service = ? ORDER BY n DESC LIMIT ?", (service, limit)
        ).fetchall()
    names = columns.split(", ")
    return [Sample(**{**dict(zip(names, row, strict=True)), "censored": bool(row[5])}) for row in reversed(rows)]


def forget(path: Path, tenant: str, service: str | None = None) -> dict[str, int]:
    """Delete all rows of a tenant, of one service or of all, and mark the models that may know them to be trained anew.

    Returns how many rows each service has lost. Safe beside a running server. Raises ConfigError when the store cannot
    be written.
    """
    where, values = ("tenant = ?", [tenant]) if service is None else ("tenant = ? AND service = ?", [tenant, service])
    try:
        with closing(connect(path)) as database:
            database.execute("PRAGMA secure_delete = ON")
            with database:
                database.execute("BEGIN IMMEDIATE")
                lost = database.execute(f"SELECT service, count(*) FROM samples WHERE {where} GROUP BY service", values)
                counts = dict(lost.fetchall())
                database.execute(f"DELETE FROM samples WHERE {where}", values)
                # A tenant's rows may have expired since; what was learned of them has not. And a first model may be
                # in training.
                for name in sorted(counts.keys() | ({service} if service is not None else set())):
                    database.execute("INSERT OR IGNORE INTO models VALUES (?, 0, 0, 0, 0)", (name,))
                every, one = ("", ()) if service is None else (" WHERE service = ?", (service,))
                database.execute(f"UPDATE models SET forgotten = forgotten + 1{every}", one)
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return counts
    except sqlite3.Error as error:
        raise ConfigError(f"the learning store {path} cannot be written: {error}") from None


class SampleStore:
    """Keeps samples on disk. All calls but `record` and `note` read or write at once: keep them off the loop."""

    def __init__(self, path: Path, keep: Mapping[str, Keep]) -> None:
        """Takes a file that is ready: use `open`. `keep` says how much, by service; others are left alone."""
        self.path = path
        self._keep = dict(keep)
        self._writer: RowWriter[Sample | tuple[str, bytes]] = RowWriter(path, _TABLES.what, self._insert)

    @classmethod
    def open(cls, folder: Path, keep: Mapping[str, Keep]) -> Self:
        """The store in a state folder, made when it is not there; a damaged one is set aside.

        Raises ConfigError when the folder cannot be written or the file is of a newer version.
        """
        path = samples_file(folder)
        _TABLES.make_ready(path)
        return cls(path, keep)

    @property
    def dropped(self) -> int:
        """Rows that were lost to a full buffer or a failing disk."""
        return self._writer.dropped

    def record(self, sample: Sample) -> None:
        """Keep this one. Never waits."""
        self._writer.put(sample)

    def note(self, service: str, data: bytes) -> None:
        """Keep these bytes as what else a service has learned, in place of those before. Never waits."""
        self._writer.put((service, data))

    def noted(self, service: str) -> bytes | None:
        """What was last noted."""
        with closing(connect(self.path)) as database:
            found = database.execute("SELECT data FROM notes WHERE service = ?", (service,)).fetchone()
        return None if found is None else bytes(found[0])

    def read(self, service: str) -> list[Sample]:
        """The rows of a service that are to be kept, oldest first, those just recorded included."""
        self._writer.flush()
        return read(self.path, service, self._keep[service].rows)

    def count(self, service: str, after: int = 0) -> int:
        """How many rows of a service came after row `after`."""
        self._writer.flush()
        with closing(connect(self.path)) as database:
            query = "SELECT count(*) FROM samples WHERE service = ? AND n > ?"
            return int(database.execute(query, (service, after)).fetchone()[0])

    def expire(self, wall: float) -> None:
        """Delete what is too old at `wall` (seconds since the epoch) or too much, also where nothing new comes."""
        with closing(connect(self.path)) as database, database:
            for service, keep in self._keep.items():
                oldest = wall - keep.days * 86_400
                database.execute("DELETE FROM samples WHERE service = ? AND at < ?", (service, oldest))
                _trim(database, service, keep)

    def trained(self, service: str) -> Trained | None:
        """What is known of a service's model."""
        with closing(connect(self.path)) as database:
            query = "SELECT at, newest, forgotten, known FROM models WHERE service = ?"
            found = database.execute(query, (service,)).fetchone()
        return None if found is None else Trained(at=found[0], newest=found[1], forgotten=found[2], known=found[3])

    def set_trained(self, service: str, trained: Trained) -> None:
        """A model was trained of samples read when `trained.forgotten` deletions had been asked for."""
        with closing(connect(self.path)) as database, database:
            database.execute("INSERT OR IGNORE INTO models VALUES (?, 0, 0, 0, 0)", (service,))
            values = (trained.at, trained.newest, trained.forgotten, service)
            database.execute("UPDATE models SET at = ?, newest = ?, known = ? WHERE service = ?", values)

    def flush(self, limit_s: float = 5.0) -> bool:
        """Wait until all that was recorded before is written or lost; False when that took longer than `limit_s`."""
        return self._writer.flush(limit_s)

    def close(self, limit_s: float = 5.0) -> None:
        """Write what is left, for at most about `limit_s`. Idempotent."""
        self._writer.close(limit_s)

    def _insert(self, database: sqlite3.Connection, rows: Sequence[Sample | tuple[str, bytes]]) -> None:
        samples = [row for row in rows if isinstance(row, Sample)]
        notes = [row for row in rows if not isinstance(row, Sample)]
        database.executemany(
            "INSERT INTO samples (service, tenant, at, features, tokens, censored) VALUES (?, ?, ?, ?, ?, ?)",
            [(row.service, row.tenant, row.at, row.features, row.tokens, row.censored) for row in samples],
        )
        database.executemany("INSERT OR REPLACE INTO notes (service, data) VALUES (?, ?)", notes)
        for service in sorted({row.service for row in samples}):
            if (keep := self._keep.get(service)) is not None:
                _trim(database, service, keep)


def _trim(database: sqlite3.Connection, service: str, keep: Keep) -> None:
    """By number alone: no index tells which are too old, so that is for `expire`, which seldom comes."""
    database.execute(
        "DELETE FROM samples WHERE service = ? AND n <= "
        "(SELECT n FROM samples WHERE service = ? ORDER BY n DESC LIMIT 1 OFFSET ?)",
        (service, service, keep.rows),
    )


class MemorySamples:
    """The same without a file: what is learned lives as long as the server."""

    path = None

    def __init__(self, keep: Mapping[str, Keep]) -> None:
        self._keep = dict(keep)
        self._rows = {service: deque[Sample](maxlen=kept.rows) for service, kept in keep.items()}
        self._recorded = dict.fromkeys(keep, 0)
        self._trained: dict[str, Trained] = {}
        self._notes: dict[str, bytes] = {}

    def record(self, sample: Sample) -> None:
        """Keep this one, while there is room."""
        self._recorded[sample.service] += 1
        self._rows[sample.service].append(sample)

    def note(self, service: str, data: bytes) -> None:
        """Keep these bytes as what else a service has learned."""
        self._notes[service] = data

    def noted(self, service: str) -> bytes | None:
        """What was last noted."""
        return self._notes.get(service)

    def read(self, service: str) -> list[Sample]:
        """The rows of a service, oldest first."""
        rows = self._rows[service]
        return [
            msgspec.structs.replace(row, n=n) for n, row in enumerate(rows, self._recorded[service] - len(rows) + 1)
        ]

    def count(self, service: str, after: int = 0) -> int:
        """How many rows of a service came after row `after`."""
        return max(0, min(len(self._rows[service]), self._recorded[service] - after))

    def expire(self, wall: float) -> None:
        """Drop what is too old at `wall` (seconds since the epoch)."""
        for service, rows in self._rows.items():
            while rows and rows[0].at < wall - self._keep[service].days * 86_400:
                rows.popleft()

    def trained(self, service: str) -> Trained | None:
        """What is known of a service's model."""
        return self._trained.get(service)

    def set_trained(self, service: str, trained: Trained) -> None:
        """A model was trained."""
        self._trained[service] = trained

    def close(self) -> None:
        """Nothing is left."""


Samples = SampleStore | MemorySamples
