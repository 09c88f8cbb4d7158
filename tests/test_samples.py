from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from foreserve import samples
from foreserve.errors import ConfigError
from foreserve.samples import Keep, MemorySamples, Sample, SampleStore, Trained, forget, samples_file

WALL = 1_700_000_000.0
DAY = 86_400.0

Open = Callable[..., SampleStore]


def sample(number: int = 0, **fields: object) -> Sample:
    values = {
        "service": "chat",
        "tenant": "ann",
        "at": WALL + number,
        "features": b"f%d" % number,
        "tokens": number + 1,
    }
    return Sample(**{**values, **fields})  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Open]:
    opened: list[SampleStore] = []

    def open_(rows: int = 1000, days: float = 30.0) -> SampleStore:
        keep = Keep(rows=rows, days=days)
        opened.append(SampleStore.open(tmp_path, {"chat": keep, "other": keep}))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def test_what_is_recorded_is_read_in_order_with_its_place(store: Open) -> None:
    kept = store()
    for number in range(3):
        kept.record(sample(number, censored=number == 1))
    kept.record(sample(9, service="other"))
    found = kept.read("chat")
    assert [(s.n, s.tokens, s.features, s.censored) for s in found] == [
        (1, 1, b"f0", False), (2, 2, b"f1", True), (3, 3, b"f2", False)
    ]  # fmt: skip
    assert kept.count("chat") == 3
    assert kept.count("chat", after=2) == 1
    assert [s.n for s in samples.read(kept.path, "chat", 2)] == [2, 3]


def test_it_is_there_after_a_restart(store: Open) -> None:
    first = store()
    first.record(sample())
    first.note("chat", b"old")
    first.note("chat", b"new")
    first.close()
    first.set_trained("chat", Trained(at=WALL, newest=1))
    again = store()
    assert len(again.read("chat")) == 1
    assert again.noted("chat") == b"new"
    assert again.noted("other") is None
    assert again.trained("chat") == Trained(at=WALL, newest=1)
    assert again.trained("other") is None


def test_each_service_is_bounded_by_itself(store: Open) -> None:
    kept = store(rows=100)
    kept.record(sample(service="other"))
    for number in range(250):
        kept.record(sample(number))
    assert [s.tokens for s in kept.read("chat")] == list(range(151, 251))
    assert len(kept.read("other")) == 1


def test_a_row_that_cannot_be_written_costs_no_later_ones(store: Open, caplog: pytest.LogCaptureFixture) -> None:
    kept = store()
    kept.record(sample(tokens=10**300))
    assert kept.flush()
    kept.record(sample(1))
    assert [s.tokens for s in kept.read("chat")] == [2]
    assert kept.dropped == 1
    assert "has lost 1 rows" in caplog.text


def test_what_is_old_goes_without_a_next_row(store: Open) -> None:
    kept = store(days=2.0)
    kept.record(sample(0))
    kept.flush()
    kept.record(sample(1, at=WALL + 3 * DAY))
    kept.flush()
    kept.expire(WALL + 4 * DAY)
    assert [s.tokens for s in kept.read("chat")] == [2]
    kept.expire(WALL + 6 * DAY)
    assert kept.read("chat") == []


def test_a_tenants_rows_are_deleted_and_the_models_marked(store: Open) -> None:
    kept = store()
    for number in range(6):
        kept.record(sample(number, tenant="ann" if number % 2 else "bob", service="chat" if number < 4 else "other"))
    kept.flush()
    for service in ("chat", "other"):
        kept.set_trained(service, Trained(at=WALL, newest=6))
    assert forget(kept.path, "ann", "chat") == {"chat": 2}
    assert {s.tenant for s in kept.read("chat")} == {"bob"}
    assert [s.tenant for s in kept.read("other")] == ["bob", "ann"]
    trained = kept.trained("chat"), kept.trained("other")
    assert [t is not None and t.stale for t in trained] == [True, False]
    assert forget(kept.path, "ann") == {"other": 1}
    # A model whose samples were read before stays marked, one whose samples were read after is clean.
    kept.set_trained("other", Trained(at=WALL, newest=6))
    assert kept.trained("other").stale  # type: ignore[union-attr]
    kept.set_trained("other", Trained(at=WALL, newest=6, forgotten=1))
    assert not kept.trained("other").stale  # type: ignore[union-attr]
    assert forget(kept.path, "nobody") == {}


def test_no_commit_looks_at_every_row(store: Open) -> None:
    """What a batch does is planned by an index, whatever has come before."""
    kept = store()
    with closing(sqlite3.connect(kept.path)) as database:
        said: list[str] = []
        database.set_trace_callback(said.append)
        kept._insert(database, [sample()])
        database.set_trace_callback(None)
        plans = [database.execute(f"EXPLAIN QUERY PLAN {one}").fetchall() for one in said if one.startswith("DELETE")]
        database.rollback()
    assert plans
    assert all("n<" in plan[0][-1] for plan in plans), plans


def test_what_was_forgotten_is_not_in_the_file(store: Open) -> None:
    kept = store()
    kept.record(sample(features=b"a very telling feature"))
    kept.record(sample(1, tenant="bob"))
    kept.flush()
    forget(kept.path, "ann")
    kept.close()
    for end in ("", "-wal"):
        file = kept.path.with_name(kept.path.name + end)
        assert not file.exists() or b"a very telling feature" not in file.read_bytes()


def _forget_in_another_process(path: str) -> None:
    assert forget(Path(path), "ann") == {"chat": 500}


def test_deleting_is_safe_beside_a_writer(store: Open) -> None:
    kept = store()
    for number in range(500):
        kept.record(sample(number))
    kept.flush()
    process = multiprocessing.get_context("spawn").Process(target=_forget_in_another_process, args=(str(kept.path),))
    process.start()
    for number in range(300):
        kept.record(sample(number, tenant="bob"))
    process.join(20)
    assert process.exitcode == 0
    assert {s.tenant for s in kept.read("chat")} == {"bob"}
    assert kept.count("chat") == 300
    assert kept.dropped == 0


def test_a_damaged_file_is_set_aside_and_a_newer_one_refused(store: Open, tmp_path: Path) -> None:
    samples_file(tmp_path).write_bytes(b"not a database" * 100)
    kept = store()
    assert kept.read("chat") == []
    assert (tmp_path / "learning.damaged.sqlite3").is_file()
    kept.close()
    with closing(sqlite3.connect(kept.path)) as database:
        database.execute(f"PRAGMA user_version = {samples.SCHEMA + 1}")
    with pytest.raises(ConfigError, match="newer Foreserve"):
        store()
    with pytest.raises(ConfigError, match="cannot be written"):
        forget(tmp_path / "nowhere" / "learning.sqlite3", "ann")


def test_a_first_model_in_training_is_marked_too(store: Open) -> None:
    kept = store()
    kept.record(sample())
    kept.flush()
    forget(kept.path, "ann")
    kept.set_trained("chat", Trained(at=WALL, newest=1))
    assert kept.trained("chat").stale  # type: ignore[union-attr]


def test_in_memory_it_is_as_bounded() -> None:
    kept = MemorySamples({"chat": Keep(rows=100, days=1.0)})
    for number in range(150):
        kept.record(sample(number))
    assert [s.n for s in kept.read("chat")] == list(range(51, 151))
    assert kept.count("chat", after=140) == 10
    kept.expire(WALL + 100 + DAY)
    assert [s.tokens for s in kept.read("chat")] == list(range(101, 151))
    kept.note("chat", b"x")
    kept.set_trained("chat", Trained(at=WALL, newest=3))
    assert (kept.noted("chat"), kept.trained("chat")) == (b"x", Trained(at=WALL, newest=3))
