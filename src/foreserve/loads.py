"""What came to services and how many replicas were decided on, in SQLite.

The windows of a service are the history that its load is forecast from after a restart; its decisions are for people.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, Self

import msgspec

from foreserve.errors import ConfigError
from foreserve.rows import RowWriter, Tables, connect
from foreserve.scaling import ScalingDecision, Window

log = logging.getLogger(__name__)

SCHEMA: Final = 1
"""The version kept in the file's `user_version`; a file of a newer one is refused."""

_TABLES = Tables(
    "the load history",
    """
CREATE TABLE windows (
    service TEXT NOT NULL, at REAL NOT NULL, window_s REAL NOT NULL, amounts BLOB NOT NULL,
    PRIMARY KEY (service, window_s, at)
);
CREATE TABLE notes (service TEXT NOT NULL, what TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (service, what));
CREATE TABLE decisions (
    n INTEGER PRIMARY KEY AUTOINCREMENT, service TEXT NOT NULL, at REAL NOT NULL, data BLOB NOT NULL
);
CREATE INDEX decisions_service ON decisions (service, n)
""",
    SCHEMA,
    "`state.history: false`",
)


MOST_DECISIONS: Final = 20_000
"""Of all services together; the oldest go first."""


class Note(msgspec.Struct, frozen=True):
    """What else was learned of a service's load, such as what a replica can do."""

    what: str
    data: bytes


Row = Window | Note | ScalingDecision


def loads_file(folder: Path) -> Path:
    """The store in a state folder."""
    return folder / "load.sqlite3"


class LoadStore:
    """Keeps windows on disk. `record` and `note` never wait; all else reads at once: keep it off the loop."""

    def __init__(self, path: Path, keep_days: Mapping[str, float]) -> None:
        """Takes a file that is ready: use `open`. `keep_days` is by service; others are left alone."""
        self.path = path
        self._keep_days = dict(keep_days)
        self._writer: RowWriter[tuple[str, Row]] = RowWriter(path, _TABLES.what, self._insert)

    @classmethod
    def open(cls, folder: Path, keep_days: Mapping[str, float]) -> Self:
        """The store in a state folder, made when it is not there; a damaged one is set aside.

        Raises ConfigError when the folder cannot be written or the file is of a newer version.
        """
        path = loads_file(folder)
        _TABLES.make_ready(path)
        return cls(path, keep_days)

    def record(self, service: str, window: Window) -> None:
        """Keep this one, in place of what was kept of the same window. Never waits."""
        self._writer.put((service, window))

    def note(self, service: str, what: str, data: bytes) -> None:
        """Keep these bytes in place of those before. Never waits."""
        self._writer.put((service, Note(what, data)))

    def decided(self, decision: ScalingDecision) -> None:
        """Keep this decision. Never waits."""
        self._writer.put((decision.service, decision))

    def noted(self, service: str, what: str) -> bytes | None:
        """What was last noted."""
        with closing(connect(self.path)) as database:
            query = "SELECT data FROM notes WHERE service = ? AND what = ?"
            found = database.execute(query, (service, what)).fetchone()
        return None if found is None else bytes(found[0])

    def windows(self, service: str, window_s: float, since: float) -> list[Window]:
        """Those of this length that begin at `since` (seconds since the epoch) or later, oldest first.

        One that cannot be read is left out.
        """
        self._writer.flush()
        query = "SELECT at, amounts FROM windows WHERE service = ? AND window_s = ? AND at >= ? ORDER BY at"
        with closing(connect(self.path)) as database:
            rows = database.execute(query, (service, window_s, since)).fetchall()
        decoder, found = msgspec.json.Decoder(dict[str, float]), list[Window]()
        for at, amounts in rows:
            try:
                found.append(Window(at=at, window_s=window_s, amounts=decoder.decode(amounts)))
            except msgspec.DecodeError as error:
                log.warning("%s: what came at %.0f cannot be read (%s); it counts as not known", service, at, error)
        return found

    def close(self, limit_s: float = 5.0) -> None:
        """Write what is left, for at most about `limit_s`. Idempotent."""
        self._writer.close(limit_s)

    def _insert(self, database: sqlite3.Connection, rows: Sequence[tuple[str, Row]]) -> None:
        newest: dict[str, float] = {}
        decided = False
        for service, row in rows:
            if isinstance(row, Note):
                database.execute("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", (service, row.what, row.data))
            elif isinstance(row, ScalingDecision):
                query = "INSERT INTO decisions (service, at, data) VALUES (?, ?, ?)"
                database.execute(query, (service, row.at, msgspec.json.encode(row)))
                decided = True
            else:
                values = (service, row.at, row.window_s, msgspec.json.encode(row.amounts))
                database.execute("INSERT OR REPLACE INTO windows VALUES (?, ?, ?, ?)", values)
                newest[service] = max(row.at, newest.get(service, row.at))
        if decided:
            database.execute("DELETE FROM decisions WHERE n <= (SELECT max(n) FROM decisions) - ?", (MOST_DECISIONS,))
        for service, at in newest.items():
            if (days := self._keep_days.get(service)) is not None:
                database.execute("DELETE FROM windows WHERE service = ? AND at < ?", (service, at - days * 86_400.0))


def decisions(path: Path, limit: int, service: str | None = None) -> list[ScalingDecision]:
    """The newest `limit` of one service or of all, oldest first, also beside a server that goes on deciding.

    Raises ConfigError when there is no such store or it cannot be read.
    """
    where, values = ("", ()) if service is None else (" WHERE service = ?", (service,))
    try:
        if not path.is_file():
            raise ConfigError(f"there is no load history {path}; a service with `replicas: [least, most]` makes it")
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as database:
            query = f"SELECT data FROM decisions{where} ORDER BY n DESC LIMIT ?"
            rows = database.execute(query, (*values, limit)).fetchall()
        return [msgspec.json.decode(data, type=ScalingDecision) for (data,) in reversed(rows)]
    except (sqlite3.Error, msgspec.DecodeError) as error:
        raise ConfigError(f"the load history {path} cannot be read: {error}") from None
