"""What survives a restart: one row for every request that has ended, in SQLite, for a bounded time.

One thread writes, in batches, what it takes from a bounded buffer; whoever records never waits, and what does not fit
is dropped and counted. No text of prompts or answers is kept: where a reason may quote one, only its code is.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec

from foreserve.core import Forecast, Outcome
from foreserve.errors import BadRequest, ConfigError, ContextExceeded, EngineFailed, UpstreamRefused
from foreserve.settings import Environment, StateSettings

log = logging.getLogger(__name__)

BUFFER_ROWS = 8192
BATCH_ROWS = 1024
LINGER_S = 0.1
"""How long the writer waits for more rows after the first of a batch, so that a busy server commits seldom."""

MAX_TEXT = 300
MAX_BESIDE = 64
MAX_READ = 10_000

_QUOTING = {cls.code for cls in (BadRequest, ContextExceeded, EngineFailed, UpstreamRefused)}
"""Codes whose reasons are the words of engines and other servers, which may quote the prompt."""

_STEPS = (
    """
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
""",
    """
ALTER TABLE requests ADD COLUMN forecast TEXT;
ALTER TABLE requests ADD COLUMN beside TEXT;
ALTER TABLE requests ADD COLUMN running INTEGER;
ALTER TABLE requests ADD COLUMN ahead INTEGER;
ALTER TABLE requests ADD COLUMN before INTEGER;
CREATE INDEX requests_parent ON requests (parent) WHERE parent IS NOT NULL;
""",
)
"""What each version of the schema adds to the one before; a file is brought up to date when a server opens it."""

SCHEMA = len(_STEPS)
"""The version kept in the file's `user_version`; a file of a newer one is refused."""


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
        )


_COLUMNS = Past.__struct_fields__
_ADDED = ((), ("forecast", "beside", "running", "ahead", "before"))
"""The columns that each step of the schema added to the first one's."""
_INSERT = f"INSERT INTO requests ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"


def history_file(settings: StateSettings) -> Path:
    """Where the history is: in `state.folder`, or in `FORESERVE_STATE` when the settings name none."""
    folder = Path(settings.folder).expanduser() if settings.folder else Environment.read().state
    return folder / "history.sqlite3"


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
            with closing(_connect(self.path)) as database:
                database.execute("PRAGMA query_only = 1")
                return list(_rows(database, clause, values))
        except sqlite3.Error as error:
            raise ConfigError(f"the request history {self.path} cannot be read: {error}") from None


class History(HistoryReader):
    """Writes the history and reads it. `dropped` counts rows that were lost to a full buffer or a failing disk."""

    def __init__(self, path: Path, settings: StateSettings) -> None:
        """Takes a file that is ready: use `open`."""
        super().__init__(path)
        self.dropped = 0
        self._keep_s = settings.history_days * 86_400
        self._keep_rows = settings.history_rows
        self._buffer: queue.Queue[Past | threading.Event | None] = queue.Queue(BUFFER_ROWS)
        self._hurry = threading.Event()
        self._closed = False
        self._writer = threading.Thread(target=self._write, name="foreserve-history", daemon=True)
        self._writer.start()

    @classmethod
    def open(cls, settings: StateSettings) -> Self:
        """The history in the state folder, made when it is not there.

        A damaged file is set aside with a warning. Raises ConfigError when the folder cannot be written or the file is
        of a newer version.
        """
        path = history_file(settings)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                _make_ready(path)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                aside = _set_aside(path)
                log.warning("the request history %s is damaged (%s): kept as %s, a new one begins", path, error, aside)
                _make_ready(path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"the request history {path} cannot be written: {error}; valid: a folder that can be written, as "
                f"`state.folder` or FORESERVE_STATE, or `state.history: false`"
            ) from None
        return cls(path, settings)

    def record(self, outcome: Outcome, wall: float) -> None:
        """Keep this outcome, which ended at `wall` (seconds since the epoch). Never waits."""
        try:
            if self._closed:
                raise queue.Full
            self._buffer.put_nowait(Past.of(outcome, wall))
        except queue.Full:
            self.dropped += 1

    def flush(self, limit_s: float = 5.0) -> bool:
        """Wait until all that was recorded before is written or lost; False when that took longer than `limit_s`."""
        written = threading.Event()
        return self._closed or (self._tell(written, limit_s) and written.wait(limit_s))

    def recent(self, limit: int = 100, service: str | None = None) -> list[Past]:
        self.flush()
        return super().recent(limit, service)

    def find(self, request_id: str) -> Past | None:
        self.flush()
        return super().find(request_id)

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
        with closing(_connect(self.path)) as database:
            while True:
                rows, last = self._batch()
                try:
                    if rows:
                        self._insert(database, rows)
                except sqlite3.Error as error:
                    self.dropped += len(rows)
                    problem = str(error)
                if self.dropped > 2 * told:
                    told = self.dropped
                    log.warning("the request history %s has lost %d rows so far: %s", self.path, told, problem)
                if isinstance(last, threading.Event):
                    last.set()
                elif last is None:
                    return

    def _batch(self) -> tuple[list[Past], Past | threading.Event | None]:
        """The rows that have come, once something has, and what ended the batch: a flush, the end, or its last row."""
        rows: list[Past] = []
        item = self._buffer.get()
        if isinstance(item, Past):
            self._hurry.wait(LINGER_S)
        self._hurry.clear()
        while isinstance(item, Past):
            rows.append(item)
            if len(rows) == BATCH_ROWS or self._buffer.empty():
                break
            item = self._buffer.get_nowait()
        return rows, item

    def _insert(self, database: sqlite3.Connection, rows: list[Past]) -> None:
        """Write a batch and forget what is too old or too much, in one transaction."""
        with database:
            database.executemany(_INSERT, map(_values, rows))
            newest = max(row.ended for row in rows)
            database.execute("DELETE FROM requests WHERE ended < ?", (newest - self._keep_s,))
            database.execute("DELETE FROM requests WHERE n <= (SELECT max(n) FROM requests) - ?", (self._keep_rows,))


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=5.0, check_same_thread=False)
    database.execute("PRAGMA synchronous = NORMAL")
    return database


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


def _make_ready(path: Path) -> None:
    with closing(sqlite3.connect(path, timeout=5.0, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        with _exclusive(database):
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA:
                raise ConfigError(
                    f"the request history {path} was written by a newer Foreserve (schema {version}, this one knows "
                    f"up to {SCHEMA}); upgrade, or name another folder as `state.folder` or FORESERVE_STATE"
                )
            for step in _STEPS[version:]:
                for statement in step.split(";"):
                    database.execute(statement)
            database.execute(f"PRAGMA user_version = {SCHEMA}")
        list(_rows(database, "ORDER BY n DESC LIMIT 1"))


def _set_aside(path: Path) -> Path:
    """Only the last damaged file is kept, so that a failing disk does not fill."""
    aside = path.with_name("history.damaged.sqlite3")
    for end in ("", "-wal", "-shm"):
        part = path.with_name(path.name + end)
        if part.exists():
            part.replace(aside.with_name(aside.name + end))
    return aside


def _values(past: Past) -> tuple[Any, ...]:
    """In the order of the columns; what is no plain value as JSON."""
    values = msgspec.structs.astuple(past)
    return tuple(
        msgspec.json.encode(value).decode() if isinstance(value, (dict, tuple, Forecast)) else value for value in values
    )


def _rows(database: sqlite3.Connection, clause: str, values: tuple[Any, ...] = ()) -> Iterator[Past]:
    """What `SELECT … clause` finds. A file that no server has brought up to date lacks columns, which are left out."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    missing = {name for step in _ADDED[max(version, 1) :] for name in step}
    columns = [name for name in _COLUMNS if name not in missing]
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
