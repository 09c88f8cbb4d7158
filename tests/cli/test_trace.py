import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tests.cli.live import serve
from typer.testing import CliRunner

from foreserve.cli import trace_record
from foreserve.cli.main import app
from foreserve.errors import ConfigError
from foreserve.traces.open import open_trace


def cli(*args):
    return CliRunner().invoke(app, ["trace", *map(str, args)], env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture
def azure(tmp_path):
    path = tmp_path / "a.csv"
    rows = "".join(f"2023-11-16 18:{n // 60:02d}:{n % 60:02d},{100 + n},{n}\n" for n in range(300))
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    return path


def test_show_prints_a_table(azure):
    result = cli("show", azure)
    assert result.exit_code == 0, result.output
    for words in ("300", "2023-11-16 18:00:00 UTC", "5.0 min", "1 requests/s", "input tokens"):
        assert words in result.output


def test_show_as_json_and_plot(azure, tmp_path):
    result = cli("show", azure, "--json", "-", "--plot", tmp_path / "p.html", "--speed", 2)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["requests"] == 300
    assert found["rate"] == pytest.approx(2.0)
    assert "plotly" in (tmp_path / "p.html").read_text()


def test_convert_a_part_into_ours(azure, tmp_path):
    out = tmp_path / "o.jsonl"
    result = cli("convert", azure, "-o", out, "--from", "1min", "--to", "120s", "--limit", 50)
    assert result.exit_code == 0, result.output
    assert "50 requests" in result.output
    trace = open_trace(out)
    rows = list(trace)
    assert (len(rows), rows[0].arrival, rows[0].input_tokens) == (50, 0.0, 160)
    assert trace.header.epoch == open_trace(azure).header.epoch + 60


def test_convert_gives_services_other_names(azure, tmp_path):
    out = tmp_path / "o.jsonl"
    assert cli("convert", azure, "-o", out, "--limit", 5, "--service", "chat").exit_code == 0
    assert {row.service for row in open_trace(out)} == {"chat"}
    assert cli("convert", out, "-o", tmp_path / "p.jsonl", "--map", "chat=code").exit_code == 0
    assert {row.service for row in open_trace(tmp_path / "p.jsonl")} == {"code"}


def test_a_trace_out_of_order_is_sorted_where_that_is_asked(tmp_path):
    path, out = tmp_path / "t.jsonl", tmp_path / "o.jsonl"
    path.write_text("".join(f'{{"arrival": {at}}}\n' for at in range(10_050, 0, -1)))
    result = cli("convert", path, "-o", out)
    assert result.exit_code == 2
    assert "--sort" in result.output
    assert not out.exists()
    assert cli("convert", path, "-o", out, "--sort").exit_code == 0
    assert [row.arrival for row in open_trace(out)] == [float(at) for at in range(1, 10_051)]


def test_malformed_rows_are_errors_or_counted(azure, tmp_path):
    azure.write_text(azure.read_text() + "never,1,2\n")
    result = cli("show", azure)
    assert result.exit_code == 2
    assert "a.csv: line 302: " in result.output
    result = cli("show", azure, "--skip-bad")
    assert "1 malformed rows left out" in result.output
    result = cli("convert", azure, "--skip-bad", "-o", tmp_path / "o.jsonl")
    assert "300 requests, 1 malformed rows left out" in result.output


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--format", "azur"], "did you mean 'azure'"),
        (["--from", "2w"], "--from: '2w' is no time; valid: 90, 90s"),
        (["--speed", 0], "speed is 0.0"),
        (["--rate", -1], "rate is -1.0"),
        (["--plot", "/no/such/folder/x.html"], "cannot be written"),
    ],
)
def test_what_is_wrong_is_said_in_words(azure, args, says):
    result = cli("show", azure, *args)
    assert result.exit_code == 2, result.output
    assert says in result.output


def test_import_by_column_names(tmp_path):
    log, out = tmp_path / "log.csv", tmp_path / "o.jsonl"
    log.write_text(
        "id,when,ms,in,out,who,hit\n"
        "1,2025-11-16T18:00:02Z,1500,10,20,ann,no\n2,2025-11-16T18:00:01Z,500,5,6,bob,no\n3,2025-11-16T18:00:03Z,1,1,1,bob,yes\n"
    )
    words = ["--arrival", "when", "--duration", "ms", "--ms", "--input-tokens", "in", "--output-tokens", "out"]
    result = cli("import", log, "-o", out, *words, "--tenant", "who", "--without", "hit=yes", "--hide-tenants")
    assert result.exit_code == 0, result.output
    assert "2 requests, 1 left out as was asked" in result.output
    rows = list(open_trace(out))
    assert [(row.arrival, row.tenant, row.input_tokens, row.total_s) for row in rows] == [
        (0.0, "t1", 5, 0.5),
        (1.0, "t2", 10, 1.5),
    ]
    result = cli("import", log, "-o", out, "--arrival", "wen")
    assert result.exit_code == 2
    assert "line 2: no arrival: nothing under 'wen'; did you mean 'when'" in result.output
    result = cli("import", log, "-o", out, "--from-gateway", "lightllm")
    assert "did you mean 'litellm'" in result.output


APP = """
import foreserve as fs

app = fs.App(
    server={"record_text": False},
    chat=fs.LLM("simulated", max_running=4, launcher="inline", default_max_tokens=16,
                engine_options={"emit_every": 1, "decode_s": 0.002}),
)
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("record")
    (folder / "app.py").write_text(APP)
    with serve(folder, str(folder / "app.py")) as server:
        yield server


def recorder(live, out, *args):
    """The command in a process of its own, recording when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-m", "foreserve.cli.main", "trace", "record", "--url", live.url, "-o", str(out), *args],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    part = out.with_name(f".{out.name}.recording")
    end = time.monotonic() + 90
    while not (part.exists() and part.stat().st_size) and process.poll() is None:
        ask(live)
        assert time.monotonic() < end
        time.sleep(0.02)
    return process


def ask(live, words="hello"):
    body = {"model": "chat", "messages": [{"role": "user", "content": words}], "max_tokens": 5}
    status, _, _ = live.post("/v1/chat/completions", body)
    assert status == 200


def ends(process):
    try:
        _, said = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return said


def test_record_until_ctrl_c(live, tmp_path):
    out = tmp_path / "o.jsonl"
    process = recorder(live, out)
    for _ in range(5):
        ask(live, "how are you? " * 20)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    said = ends(process)
    assert process.returncode == 0, said
    trace = open_trace(out)
    rows = list(trace)
    assert f"{len(rows)} requests" in said
    assert len(rows) >= 5
    assert {(row.service, row.outcome, row.output_tokens, row.most_tokens) for row in rows} == {("chat", "done", 5, 5)}
    assert all(0 < row.first_s <= row.total_s for row in rows)
    assert len(set(rows[-1].prefix) & set(rows[-2].prefix)) == len(rows[-1].prefix) > 4
    assert trace.header.block_tokens == 32
    assert list(tmp_path.iterdir()) == [out]
    assert "hello" not in out.read_text()
    assert cli("show", out).exit_code == 0


def test_a_recording_of_some_minutes_ends_by_itself(live, tmp_path):
    out = tmp_path / "o.jsonl.xz"
    process = recorder(live, out, "--minutes", "0.02", "--block-tokens", "16")
    said = ends(process)
    assert process.returncode == 0, said
    assert open_trace(out).header.block_tokens == 16


def test_what_a_recording_is_refused_for(live, tmp_path):
    result = cli("record", "--url", live.url, "-o", tmp_path / "o", "--text")
    assert result.exit_code == 2
    assert "403: this server records no text" in result.output
    result = cli("record", "--url", "http://127.0.0.1:9", "-o", tmp_path / "o")
    assert (result.exit_code, "cannot be reached" in result.output) == (2, True)
    assert "must start with http" in cli("record", "--url", "x", "-o", tmp_path / "o").output
    assert "--minutes is -1" in cli("record", "--minutes", "-1", "-o", tmp_path / "o").output
    assert not list(tmp_path.iterdir())


def test_a_server_that_stops_ends_its_recordings_first(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    out = tmp_path / "o.jsonl"
    with serve(tmp_path, str(tmp_path / "app.py")) as live:
        process = recorder(live, out)
        ask(live)
        time.sleep(0.2)
        begun = time.monotonic()
        live.process.terminate()
        live.process.wait(20)
        assert time.monotonic() - begun < 15, "it waited for the recording"
        said = ends(process)
    assert process.returncode == 0, said
    assert "broken off" not in said
    assert list(open_trace(out))


@pytest.mark.parametrize("fails", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_recorded_is_kept_until_the_trace_is_written(tmp_path, monkeypatch, fails):
    part, out = tmp_path / ".o.jsonl.recording", tmp_path / "o.jsonl"
    part.write_text('{"foreserve_trace": 1}\n{"arrival": 2.0}\n{"arrival": 1.0}\n')

    def breaks(*_):
        raise fails

    monkeypatch.setattr(trace_record, "write_rows", breaks)
    with pytest.raises(ConfigError, match=r"what was recorded is in .*\.recording"):
        trace_record._finish(part, out, trace_record.Written())
    result = cli("record", "-o", out)
    assert result.exit_code == 2
    assert "convert --sort --skip-bad" in result.output
    assert cli("convert", "--sort", "--skip-bad", part, "-o", out).exit_code == 0
    assert [row.arrival for row in open_trace(out)] == [1.0, 2.0]


def test_a_malformed_row_does_not_cost_the_recording(tmp_path):
    part, out = tmp_path / "part", tmp_path / "o.jsonl"
    part.write_text('{"foreserve_trace": 1}\n{"arrival": 2.0}\n{"arrival": 1.0, "deadline_s": 0.0}\n')
    trace_record._finish(part, out, trace_record.Written(rows=2, lost=4))
    assert [row.arrival for row in open_trace(out)] == [2.0]
    assert open_trace(out).header.lost == 5
    assert "5 more came while it was recorded and are missing" in cli("show", out).output
    assert not part.exists()


def test_a_recording_that_broke_off_is_written_and_exits_1(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    out = tmp_path / "o.jsonl"
    with serve(tmp_path, str(tmp_path / "app.py")) as live:
        process = recorder(live, out)
        ask(live)
        time.sleep(0.3)
        live.process.kill()
        live.process.wait(20)
        said = ends(process)
    assert process.returncode == 1, said
    assert "broken off" in said
    assert list(open_trace(out))
