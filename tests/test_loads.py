from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from foreserve.errors import ConfigError
from foreserve.loads import MOST_DECISIONS, LoadStore, decisions, loads_file
from foreserve.scaling import ScalingDecision, Window

WALL = 1_700_000_040.0
DAY = 86_400.0

Open = Callable[[], LoadStore]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Open]:
    opened: list[LoadStore] = []

    def open_() -> LoadStore:
        opened.append(LoadStore.open(tmp_path, {"chat": 2.0, "other": 28.0}))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


def window(minute: int, **amounts: float) -> Window:
    return Window(at=WALL + 60.0 * minute, window_s=60.0, amounts={"requests": float(minute), **amounts})


def decision(n: int, service: str = "chat") -> ScalingDecision:
    return ScalingDecision(service=service, at=WALL + n, active=1, wanted=2, granted=2, why=f"because {n}")


def test_windows_survive_a_restart(store: Open) -> None:
    first = store()
    told = [window(minute, output_tokens=0.5) for minute in range(5)]
    for one in told:
        first.record("chat", one)
    first.record("other", window(9))
    first.close()
    second = store()
    assert second.windows("chat", 60.0, 0.0) == told
    assert second.windows("chat", 60.0, WALL + 120.0) == told[2:]
    assert second.windows("chat", 600.0, 0.0) == []
    assert second.windows("other", 60.0, 0.0) == [window(9)]


def test_a_window_that_cannot_be_read_costs_no_other(store: Open, tmp_path: Path) -> None:
    kept = store()
    for minute in range(3):
        kept.record("chat", window(minute))
    kept.close()
    with closing(sqlite3.connect(loads_file(tmp_path))) as database:
        database.execute('UPDATE windows SET amounts = \'{"requests": "many"}\' WHERE at = ?', (WALL + 60.0,))
        database.commit()
    assert store().windows("chat", 60.0, 0.0) == [window(0), window(2)]


def test_what_is_told_later_of_a_window_replaces_it(store: Open) -> None:
    kept = store()
    kept.record("chat", window(1, output_tokens=100.0))
    kept.record("chat", window(1, output_tokens=40.0))
    assert kept.windows("chat", 60.0, 0.0) == [window(1, output_tokens=40.0)]


def test_windows_are_kept_for_so_many_days(store: Open) -> None:
    kept = store()
    for service in ("chat", "other"):
        kept.record(service, window(0))
        kept.record(service, window(1 + 2 * 24 * 60))
    assert [w.at for w in kept.windows("chat", 60.0, 0.0)] == [WALL + 60.0 + 2 * DAY]
    assert len(kept.windows("other", 60.0, 0.0)) == 2


def test_notes_and_decisions_are_kept(store: Open, tmp_path: Path) -> None:
    kept = store()
    assert kept.noted("chat", "capacity") is None
    kept.note("chat", "capacity", b"1")
    kept.note("chat", "capacity", b"2")
    for n in range(4):
        kept.decided(decision(n, "chat" if n % 2 else "other"))
    kept.close()
    assert store().noted("chat", "capacity") == b"2"
    path = loads_file(tmp_path)
    assert [one.why for one in decisions(path, 3)] == ["because 1", "because 2", "because 3"]
    assert [one.why for one in decisions(path, 3, "chat")] == ["because 1", "because 3"]


def test_decisions_are_bounded(store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreserve.loads.MOST_DECISIONS", 10)
    kept = store()
    for n in range(50):
        kept.decided(decision(n))
    kept.close()
    assert [one.why for one in decisions(loads_file(tmp_path), 100)] == [f"because {n}" for n in range(40, 50)]
    assert MOST_DECISIONS > 10


def test_a_damaged_file_is_set_aside_and_a_newer_one_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = loads_file(tmp_path)
    path.write_bytes(b"no database at all, " * 100)
    LoadStore.open(tmp_path, {}).close()
    assert "is damaged" in caplog.text
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="was written by a newer Foreserve"):
        LoadStore.open(tmp_path, {})


def test_no_store_and_one_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    path = loads_file(tmp_path)
    with pytest.raises(ConfigError, match="there is no load history"):
        decisions(path, 1)
    path.write_bytes(b"no database at all, " * 100)
    with pytest.raises(ConfigError, match="cannot be read"):
        decisions(path, 1)
