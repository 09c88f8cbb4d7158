from __future__ import annotations

import asyncio
import logging
import multiprocessing
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from foreserve import rows, state
from foreserve.core import Forecast, Length, Outcome, OutcomeKind
from foreserve.errors import ConfigError
from foreserve.settings import StateSettings
from foreserve.state import History, HistoryReader, Past

WALL = 1_700_000_000.0
DAY = 86_400.0

FORECAST = Forecast(
    input_tokens=3,
    output=Length(mean=8.0, p50=6.0, p80=10.0, p95=20.5, source="fast"),
    most_tokens=64,
    seconds=1.25,
    least_seconds=0.5,
)

FIRST_SCHEMA = """
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
INSERT INTO requests VALUES (
    7, 'old', 'chat', 'done', 1700000000.0, 0.5, 1.0, 2.5, 'stop', '', '', 'ann', NULL, 'chat-0', 0, 'first come',
    '{"slots":1.0}', '{"output_tokens":7.0}'
);
PRAGMA user_version = 1;
"""

Open = Callable[..., History]


def outcome(number: int = 0, **fields: object) -> Outcome:
    values = {"id": f"r{number}", "service": "chat", "kind": OutcomeKind.DONE, "arrival": 10.0, "ended": 12.5}
    return Outcome(**{**values, **fields})  # type: ignore[arg-type]


@pytest.fixture
def history(tmp_path: Path) -> Iterator[Open]:
    opened: list[History] = []

    def open_(**settings: object) -> History:
        opened.append(History.open(StateSettings(folder=str(tmp_path / "state"), **settings)))  # type: ignore[arg-type]
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.sqlite3"


def test_what_is_recorded_is_found_with_its_figures(history: Open) -> None:
    kept = history()
    kept.record(
        outcome(
            1, started=10.5, first=11.0, finish="stop", tenant="ann", parent="root", replica="chat-0", attempt=1,
            why="first come", cost={"slots": 1.0}, usage={"prompt_tokens": 3.0, "output_tokens": 7.0},
            forecast=FORECAST, beside=("r2", "r3"), running=4, ahead=12, before=9, again="replica lost",
        ),
        WALL,
    )  # fmt: skip
    assert kept.find("r1") == Past(
        id="r1", service="chat", kind="done", ended=WALL, wait_s=0.5, first_s=1.0, total_s=2.5, finish="stop", code="",
        reason="", tenant="ann", parent="root", replica="chat-0", attempt=1, why="first come", cost={"slots": 1.0},
        usage={"prompt_tokens": 3.0, "output_tokens": 7.0}, forecast=FORECAST, beside=("r2", "r3"), running=4, ahead=12,
        before=9, again="replica lost",
    )  # fmt: skip
    assert kept.find("nobody") is None


def test_a_request_that_never_ran_has_no_times_of_running(history: Open) -> None:
    kept = history()
    kept.record(outcome(1, kind=OutcomeKind.SHED, code="shed", reason="256 requests wait", retry_after=2.0), WALL)
    past = kept.find("r1")
    assert past is not None
    assert (past.kind, past.wait_s, past.first_s, past.reason) == ("shed", None, None, "256 requests wait")


def test_recent_is_newest_first_by_service_and_bounded(history: Open) -> None:
    kept = history()
    for number in range(50):
        kept.record(outcome(number, service="chat" if number % 2 else "rank"), WALL + number)
    assert [past.id for past in kept.recent(3)] == ["r49", "r48", "r47"]
    assert [past.id for past in kept.recent(2, "rank")] == ["r48", "r46"]
    assert kept.recent(5, "nobody") == []
    assert kept.recent(0) == kept.recent(-1) == []
    assert len(kept.recent(10**9)) == 50


def test_the_last_of_one_id_counts(history: Open) -> None:
    kept = history()
    kept.record(outcome(1, service="a"), WALL)
    kept.record(outcome(1, service="b"), WALL)
    past = kept.find("r1")
    assert past is not None
    assert past.service == "b"


@pytest.mark.parametrize("code", ["engine_error", "upstream_refused", "invalid_request", "context_length_exceeded"])
def test_words_that_may_quote_a_prompt_are_not_kept(history: Open, tmp_path: Path, code: str) -> None:
    kept = history()
    secret = "my card is 4111-1111"
    failed = outcome(
        1, kind=OutcomeKind.FAILED, code=code, reason=f"cannot read {secret!r}", detail={"status": 400, "body": secret}
    )
    kept.record(failed, WALL)
    past = kept.find("r1")
    assert past is not None
    assert (past.code, past.reason) == (code, "")
    kept.close()
    assert all(secret.encode() not in path.read_bytes() for path in file(tmp_path).parent.iterdir())


def test_long_words_are_cut(history: Open) -> None:
    kept = history()
    kept.record(outcome(1, kind=OutcomeKind.SHED, code="shed", reason="x" * 10_000, why="y" * 10_000), WALL)
    past = kept.find("r1")
    assert past is not None
    assert len(past.reason) == len(past.why) == state.MAX_TEXT


def test_close_writes_what_is_left_and_a_restart_finds_it(history: Open) -> None:
    first = history()
    for number in range(3000):
        first.record(outcome(number), WALL)
    first.close()
    first.close()
    first.record(outcome(9999), WALL)
    assert first.dropped == 1
    again = history()
    assert len(again.recent(5000)) == 3000
    again.record(outcome(3000), WALL)
    assert again.recent(1)[0].id == "r3000"


def test_too_many_rows_push_out_the_oldest(history: Open) -> None:
    kept = history(history_rows=10)
    for number in range(35):
        kept.record(outcome(number), WALL)
        if number % 7 == 0:
            kept.flush()
    assert [past.id for past in kept.recent(100)] == [f"r{number}" for number in range(34, 24, -1)]


def test_old_rows_leave(history: Open) -> None:
    kept = history(history_days=2.0)
    for number in range(4):
        kept.record(outcome(number), WALL + number * DAY)
        kept.flush()
    assert [past.id for past in kept.recent()] == ["r3", "r2", "r1"]


def test_a_full_buffer_drops_and_counts_and_never_waits(
    history: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(state, "BUFFER_ROWS", 4)
    kept = history()
    with closing(sqlite3.connect(kept.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # the writer waits for its turn, as behind a slow disk
        for number in range(rows.BATCH_ROWS):
            kept.record(outcome(number), WALL)
        assert kept.dropped > 0
        other.execute("COMMIT")
    kept.flush()
    assert len(kept.recent(10_000)) + kept.dropped == rows.BATCH_ROWS
    kept.close()
    assert "has lost" in caplog.text


async def test_the_loop_is_free_while_the_disk_is_not(history: Open) -> None:
    kept = history()
    with closing(sqlite3.connect(kept.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(100):
            kept.record(outcome(number), WALL)
            await asyncio.sleep(0)
        assert kept.dropped == 0
        other.execute("ROLLBACK")
    assert len(await asyncio.to_thread(kept.recent)) == 100


def test_a_failing_write_is_counted_and_the_writer_goes_on(history: Open, caplog: pytest.LogCaptureFixture) -> None:
    kept = history()
    with closing(sqlite3.connect(kept.path)) as other:
        other.execute("ALTER TABLE requests RENAME TO gone")
        other.commit()
        kept.record(outcome(1), WALL)
        assert kept.flush()
        other.execute("ALTER TABLE gone RENAME TO requests")
        other.commit()
    kept.record(outcome(2), WALL)
    assert [past.id for past in kept.recent()] == ["r2"]
    assert kept.dropped == 1
    assert "no such table" in caplog.text


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to look at" * 100, b"SQLite format 3\0" * 99]
)
def test_a_damaged_file_is_set_aside(
    history: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    file(tmp_path).parent.mkdir()
    file(tmp_path).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        kept = history()
    assert "is damaged" in caplog.text
    assert (tmp_path / "state" / "history.damaged.sqlite3").read_bytes() == content
    kept.record(outcome(1), WALL)
    assert len(kept.recent()) == 1


def test_a_cut_off_file_is_set_aside(history: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = history()
    for number in range(2000):
        kept.record(outcome(number), WALL)
    kept.close()
    whole = file(tmp_path).read_bytes()
    file(tmp_path).write_bytes(whole[:5000])
    again = history()
    assert "is damaged" in caplog.text
    again.record(outcome(1), WALL)
    assert len(again.recent()) == 1


def test_a_newer_file_is_left_alone(history: Open, tmp_path: Path) -> None:
    history().close()
    with closing(sqlite3.connect(file(tmp_path))) as database:
        database.execute(f"PRAGMA user_version = {state.SCHEMA + 1}")
    with pytest.raises(ConfigError, match=r"newer Foreserve \(schema 4, this one knows up to 3\).*state\.folder"):
        history()
    with closing(sqlite3.connect(file(tmp_path))) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (state.SCHEMA + 1,)


def of_the_first_schema(tmp_path: Path) -> Past:
    """Leaves a history as the first release wrote it, and gives what is known of its one row."""
    file(tmp_path).parent.mkdir()
    with closing(sqlite3.connect(file(tmp_path))) as database:
        database.executescript(FIRST_SCHEMA)
    return Past(
        id="old", service="chat", kind="done", ended=WALL, wait_s=0.5, first_s=1.0, total_s=2.5, finish="stop", code="",
        reason="", tenant="ann", parent=None, replica="chat-0", attempt=0, why="first come", cost={"slots": 1.0},
        usage={"output_tokens": 7.0}, forecast=None, beside=None, running=None, ahead=None, before=None,
    )  # fmt: skip


def test_a_file_of_the_first_schema_keeps_its_rows(history: Open, tmp_path: Path) -> None:
    old = of_the_first_schema(tmp_path)
    kept = history()
    kept.record(outcome(1, forecast=FORECAST, ahead=3, again="server full"), WALL + 1)
    past, before = kept.recent()
    assert before == old
    assert (past.id, past.forecast, past.beside, past.ahead) == ("r1", FORECAST, (), 3)
    assert (past.again, before.again) == ("server full", None)
    kept.close()
    assert [past.id for past in history().recent()] == ["r1", "old"]


def test_a_file_of_the_first_schema_is_read_without_a_server(tmp_path: Path) -> None:
    old = of_the_first_schema(tmp_path)
    reader = HistoryReader(file(tmp_path))
    assert reader.recent() == [reader.find("old")] == [old]
    assert reader.children("old") == []


def test_the_parts_of_a_request_are_found(history: Open) -> None:
    kept = history()
    for number in range(4):
        kept.record(outcome(number, parent="root" if number else None), WALL)
    assert [past.id for past in kept.children("root")] == ["r1", "r2", "r3"]
    assert [past.id for past in kept.children("root", 1)] == ["r1"]


def test_a_great_batch_is_kept_in_part(history: Open) -> None:
    kept = history()
    kept.record(outcome(1, beside=tuple(f"r{number}" for number in range(1000))), WALL)
    past = kept.find("r1")
    assert past is not None
    assert past.beside == tuple(f"r{number}" for number in range(state.MAX_BESIDE))


def test_a_folder_that_cannot_be_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ConfigError, match=r"cannot be written: .*`state\.folder` or FORESERVE_STATE"):
        History.open(StateSettings(folder=str(tmp_path / "taken" / "state")))
    (tmp_path / "state" / "history.sqlite3").mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be written"):
        History.open(StateSettings(folder=str(tmp_path / "state")))


def test_without_a_folder_it_is_that_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORESERVE_STATE", str(tmp_path / "elsewhere"))
    kept = History.open(StateSettings())
    kept.close()
    assert kept.path == tmp_path / "elsewhere" / "history.sqlite3"
    assert kept.path.is_file()


def test_the_writer_is_one_thread_that_ends(history: Open) -> None:
    before = threading.active_count()
    kept = history()
    assert threading.active_count() == before + 1
    kept.close()
    assert threading.active_count() == before


def test_another_process_reads_beside_the_writer(history: Open) -> None:
    kept = history()
    kept.record(outcome(7), WALL)
    kept.flush()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_found, (str(kept.path), "r7")) == "chat"


def _found(path: str, request_id: str) -> str | None:
    past = HistoryReader(Path(path)).find(request_id)
    return past.service if past else None


def test_two_servers_may_share_a_folder(history: Open) -> None:
    one, other = history(), history()
    for number in range(200):
        (one if number % 2 else other).record(outcome(number), WALL)
    assert one.flush()
    assert other.flush()
    assert {past.id for past in one.recent(1000)} == {f"r{number}" for number in range(200)}
    assert one.dropped == other.dropped == 0


def test_nothing_to_read_yet_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no request history at .*begins with the first request"):
        HistoryReader(tmp_path / "history.sqlite3")
