"""A file of rows that cannot be opened costs the rows of that time, and neither the writer nor who waits for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from foreserve.rows import RowWriter, Tables, connect

TABLES = Tables("test rows", "CREATE TABLE row (value INTEGER)", 1, "none")


def insert(database: sqlite3.Connection, rows: Sequence[int]) -> None:
    database.executemany("INSERT INTO row VALUES (?)", [(row,) for row in rows])


def test_a_file_that_cannot_be_opened_costs_its_rows_and_no_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite3"
    TABLES.make_ready(path)
    whole = path.read_bytes()
    path.write_bytes(b"broken" * 1000)
    writer = RowWriter(path, "test rows", insert)
    writer.put(1)
    assert writer.flush()
    assert writer.dropped == 1

    path.write_bytes(whole)
    writer.put(2)
    assert writer.flush()
    writer.close()
    assert writer.dropped == 1
    with closing(connect(path)) as database:
        assert database.execute("SELECT value FROM row").fetchall() == [(2,)]
