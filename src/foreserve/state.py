"""What survives a restart: one row for every request that has ended, in SQLite, for a bounded time.

No text of prompts or answers is kept: where a reason may quote one, only its code is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import msgspec

from foreserve.core import Forecast, Outcome
from foreserve.errors import BadRequest, ConfigError, ContextExceeded, EngineFailed, UpstreamRefused
from foreserve.rows import BUFFER_ROWS, RowWriter, Tables, connect, state_folder
from foreserve.settings import StateSettings

MAX_TEXT = 300
MAX_BESIDE = 64
MAX_READ = 10_000

_QUOTING = {cls.code for cls in (BadRequest, ContextExceeded, EngineFailed, UpstreamRefused)}
"""Codes whose reasons are the words of engines and other servers, which may quote the prompt."""

_TABLE = """
CREATE TABLE requests (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL, service TEXT NOT NULL, kind TEXT NOT NULL, ended REAL NOT NULL,
    wait_s REAL, first_s REAL, total_s REAL NOT NULL,
    finish TEXT, code TEXT NOT NULL, reason TEXT NOT NULL, tenant TEXT NOT NULL, parent TEXT,
    replica TEXT, attempt INTEGER NOT NULL, why TEXT NOT NULL, cost TEXT NOT NULL, usage TEXT NOT NULL
);
CREATE INDEX requests_id ON requests (id);
CREATE INDEX requests_service ON requests (service, n);
CREATE INDEX requests_ended ON requests (ended);
"""
_LATER = (
    """
ALTER TABLE requests ADD COLUMN forecast TEXT;
ALTER TABLE requests ADD COLUMN beside TEXT;
ALTER TABLE requests ADD COLUMN running INTEGER;
ALTER TABLE requests ADD COLUMN ahead INTEGER;
ALTER TABLE requests ADD COLUMN before INTEGER;
CREATE INDEX requests_parent ON requests (parent) WHERE parent IS NOT NULL;
""",
    "ALTER TABLE requests ADD COLUMN again TEXT",
)
SCHEMA = 1 + len(_LATER)
"""The version kept in the file's `user_version`; a file of a newer one is refused."""

_TABLES = Tables("the request history", _TABLE, SCHEMA, "`state.history: false`", later=_LATER)


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """One request that has ended.

    `ended` is in seconds since the epoch. Durations are in seconds since its arrival: `wait_s` until it was given to a
    replica, `first_s` until its first chunk, `total_s` until its end; `None` where that never happened. The other
    fields are those of `Outcome`; of `beside`, the first `MAX_BESIDE`. What rows of an older schema did not keep is
    `None`.
    """

    id: str
    service: str
    kind: str
    ended: float
    wait_s: float | None
    first_s: float | None
    total_s: float
    finish: str | None
    code: str
    reason: str
    tenant: str
    parent: str | None
    replica: str | None
    attempt: int
    why: str
    cost: dict[str, float]
    usage: dict[str, float]
    forecast: Forecast | None = None
    beside: tuple[str, ...] | None = None
    running: int | None = None
    ahead: int | None = None
    before: int | None = None
    again: str | None = None

    @classmethod
    def of(cls, outcome: Outcome, wall: float) -> Past:
        """What is kept of an outcome whose end was at `wall`."""
        return cls(
            id=outcome.id,
            service=outcome.service,
            kind=str(outcome.kind),
            ended=wall,
            wait_s=None if outcome.started is None else outcome.started - outcome.arrival,
            first_s=None if outcome.first is None else outcome.first - outcome.arrival,
            total_s=outcome.ended - outcome.arrival,
            finish=outcome.finish,
            code=outcome.code,
            reason="" if outcome.code in _QUOTING else outcome.reason[:MAX_TEXT],
            tenant=outcome.tenant,
            parent=outcome.parent,
            replica=outcome.replica,
            attempt=outcome.attempt,
            why=outcome.why[:MAX_TEXT],
            cost=outcome.cost,
            usage=outcome.usage,
            forecast=outcome.forecast,
            beside=outcome.beside[:MAX_BESIDE],
            running=outcome.running,
            ahead=outcome.ahead,
            before=outcome.before,
            again=outcome.again,
        )


_COLUMNS = Past.__struct_fields__
_SINCE = {"forecast": 2, "beside": 2, "running": 2, "ahead": 2, "before": 2, "again": 3}
"""The version from which on the file has a column, where it is not the first."""
_INSERT = f"INSERT INTO requests ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"


def history_file(settings: StateSettings) -> Path:
    """Where the history is: in `state.folder`, or in `FORESERVE_STATE` when the settings name none."""
    return state_folder(settings) / "history.sqlite3"


def forget_tenant(path: Path, tenant: str, service: str | None = None) -> int:
    """Delete a tenant's rows, of one service or of all; how many there were. Safe beside a running server.

    Raises ConfigError when the history cannot be written.
    """
    where, values = ("tenant = ?", [tenant]) if service is None else ("tenant = ? AND service = ?", [tenant, service])
    try:
        with closing(connect(path)) as database:
            database.execute("PRAGMA secure_delete = ON")
            with database:
                count = database.execute(f"DELETE FROM requests WHERE {where}", values).rowcount
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return count
    except sqlite3.Error as error:
        raise ConfigError(f"the request history {path} cannot be written: {error}") from None


def services_in(path: Path) -> set[str]:
    """The services that have rows in the history. Raises ConfigError when it cannot be read."""
    if not path.exists():
        return set()
    try:
        with closing(connect(path)) as database:
            return {name for (name,) in database.execute("SELECT DISTINCT service FROM requests")}
    except sqlite3.Error as error:
        raise ConfigError(f"the request history {path} cannot be read: {error}") from None


class HistoryReader:
    """Reads the history, also beside the server that writes it. Calls take milliseconds: keep them off the loop."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError when `path` is not there."""
        if not path.is_file():
            raise ConfigError(f"no request history at {path}; it begins with the first request that a server ends")
        self.path = path

    def recent(self, limit: int = 100, service: str | None = None) -> list[Past]:
        """The requests that ended last, newest first; at most `limit` and never more than `MAX_READ`."""
        where, values = ("WHERE service = ?", (service,)) if service is not None else ("", ())
        return self._read(f"{where} ORDER BY n DESC LIMIT ?", (*values, max(0, min(limit, MAX_READ))))

    def find(self, request_id: str) -> Past | None:
        """The last request that ended under this id."""
        return next(iter(self._read("WHERE id = ? ORDER BY n DESC LIMIT 1", (request_id,))), None)

    def children(self, request_id: str, limit: int = 100) -> list[Past]:
        """The requests that ended as parts of this one (their `parent`), the first to end first; at most `limit`."""
        bound = max(0, min(limit, MAX_READ))
        return self._read("WHERE parent = ? ORDER BY n LIMIT ?", (request_id, bound))

    def _read(self, clause: str, values: tuple[Any, ...]) -> list[Past]:
        try:
            with closing(connect(self.path)) as database:
                database.execute("PRAGMA query_only = 1")
                return list(_rows(database, clause, values))
        except sqlite3.Error as error:
            raise ConfigError(f"the request history {self.path} cannot be read: {error}") from None


class History(HistoryReader):
    """Writes the history and reads it."""

    def __init__(self, path: Path, settings: StateSettings) -> None:
        """Takes a file that is ready: use `open`."""
        super().__init__(path)
        self._keep_s = settings.history_days * 86_400
        self._keep_rows = settings.history_rows
        self._writer = RowWriter(path, _TABLES.what, self._insert, BUFFER_ROWS)

    @classmethod
    def open(cls, settings: StateSettings) -> Self:
        """The history in the state folder, made when it is not there.

        A damaged file is set aside with a warning. Raises ConfigError when the folder cannot be written or the file is
        of a newer version.
        """
        path = history_file(settings)
        _TABLES.make_ready(path)
        return cls(path, settings)

    @property
    def dropped(self) -> int:
        """Rows that were lost to a full buffer or a failing disk."""
        return self._writer.dropped

    def record(self, outcome: Outcome, wall: float) -> None:
        """Keep this outcome, which ended at `wall` (seconds since the epoch). Never waits."""
        self._writer.put(Past.of(outcome, wall))

    def flush(self, limit_s: float = 5.0) -> bool:
        """Wait until all that was recorded before is written or lost; False when that took longer than `limit_s`."""
        return self._writer.flush(limit_s)

    def recent(self, limit: int = 100, service: str | None = None) -> list[Past]:
        self.flush()
        return super().recent(limit, service)

    def find(self, request_id: str) -> Past | None:
        self.flush()
        return super().find(request_id)

    def children(self, request_id: str, limit: int = 100) -> list[Past]:
        self.flush()
        return super().children(request_id, limit)

    def close(self, limit_s: float = 5.0) -> None:
        """Write what is left, for at most about `limit_s`, and end the writer. Idempotent."""
        self._writer.close(limit_s)

    def _insert(self, database: sqlite3.Connection, rows: Sequence[Past]) -> None:
        """Write a batch and forget what is too old or too much."""
        database.executemany(_INSERT, map(_values, rows))
        newest = max(row.ended for row in rows)
        database.execute("DELETE FROM requests WHERE ended < ?", (newest - self._keep_s,))
        database.execute("DELETE FROM requests WHERE n <= (SELECT max(n) FROM requests) - ?", (self._keep_rows,))


def _values(past: Past) -> tuple[Any, ...]:
    """In the order of the columns; what is no plain value as JSON."""
    values = msgspec.structs.astuple(past)
    return tuple(
        msgspec.json.encode(value).decode() if isinstance(value, (dict, tuple, Forecast)) else value for value in values
    )


def _rows(database: sqlite3.Connection, clause: str, values: tuple[Any, ...]) -> Iterator[Past]:
    """What `SELECT … clause` finds. A file that no server has brought up to date lacks columns, which are left out."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    columns = [name for name in _COLUMNS if _SINCE.get(name, 1) <= max(version, 1)]
    for row in database.execute(f"SELECT {', '.join(columns)} FROM requests {clause}", values):
        yield _past(dict(zip(columns, row, strict=True)))


def _past(fields: dict[str, Any]) -> Past:
    amounts = {name: msgspec.json.decode(fields[name], type=dict[str, float]) for name in ("cost", "usage")}
    forecast, beside = fields.get("forecast"), fields.get("beside")
    foreseen = {
        "forecast": forecast and msgspec.json.decode(forecast, type=Forecast),
        "beside": beside and msgspec.json.decode(beside, type=tuple[str, ...]),
    }
    return Past(**{**fields, **amounts, **foreseen})
