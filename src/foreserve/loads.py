"""What came to services, window by window, in SQLite: the history that loads are forecast from after a restart."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, Self

import msgspec

from foreserve.rows import RowWriter, Tables, connect
from foreserve.scaling import Window

SCHEMA: Final = 1
"""The version kept in the file's `user_version`; a file of a newer one is refused."""

_TABLES = Tables(
    "the load history",
    """
CREATE TABLE windows (
    service TEXT NOT NULL, at REAL NOT NULL, window_s REAL NOT NULL, amounts BLOB NOT NULL,
    PRIMARY KEY (service, window_s, at)
) WITHOUT ROWID;
CREATE TABLE notes (service TEXT NOT NULL, what TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (service, what))
""",
    SCHEMA,
    "`state.history: false`",
)


class Note(msgspec.Struct, frozen=True):
    """What else was learned of a service's load, such as what a replica can do."""

    what: str
    data: bytes


def loads_file(folder: Path) -> Path:
    """The store in a state folder."""
    return folder / "load.sqlite3"


class LoadStore:
    """Keeps windows on disk. `record` and `note` never wait; all else reads at once: keep it off the loop."""

    def __init__(self, path: Path, keep_days: Mapping[str, float]) -> None:
        """Takes a file that is ready: use `open`. `keep_days` is by service; others are left alone."""
        self.path = path
        self._keep_days = dict(keep_days)
        self._writer: RowWriter[tuple[str, Window | Note]] = RowWriter(path, _TABLES.what, self._insert)

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

    def noted(self, service: str, what: str) -> bytes | None:
        """What was last noted."""
        with closing(connect(self.path)) as database:
            query = "SELECT data FROM notes WHERE service = ? AND what = ?"
            found = database.execute(query, (service, what)).fetchone()
        return None if found is None else bytes(found[0])

    def windows(self, service: str, window_s: float, since: float) -> list[Window]:
        """Those of this length that begin at `since` (seconds since the epoch) or later, oldest first."""
        self._writer.flush()
        query = "SELECT at, amounts FROM windows WHERE service = ? AND window_s = ? AND at >= ? ORDER BY at"
        with closing(connect(self.path)) as database:
            rows = database.execute(query, (service, window_s, since)).fetchall()
        decoder = msgspec.json.Decoder(dict[str, float])
        return [Window(at=at, window_s=window_s, amounts=decoder.decode(amounts)) for at, amounts in rows]

    def close(self, limit_s: float = 5.0) -> None:
        """Write what is left, for at most about `limit_s`. Idempotent."""
        self._writer.close(limit_s)

    def _insert(self, database: sqlite3.Connection, rows: Sequence[tuple[str, Window | Note]]) -> None:
        newest: dict[str, float] = {}
        for service, row in rows:
            if isinstance(row, Note):
                database.execute("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", (service, row.what, row.data))
            else:
                values = (service, row.at, row.window_s, msgspec.json.encode(row.amounts))
                database.execute("INSERT OR REPLACE INTO windows VALUES (?, ?, ?, ?)", values)
                newest[service] = max(row.at, newest.get(service, row.at))
        for service, at in newest.items():
            if (days := self._keep_days.get(service)) is not None:
                database.execute("DELETE FROM windows WHERE service = ? AND at < ?", (service, at - days * 86_400.0))
