"""The whole server, as a user starts it, with a model that needs no weights."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.live import Live, serve

APP = """
import time
import foreserve as fs

@fs.function(idempotent=True)
def slow(seconds: float) -> str:
    time.sleep(seconds)
    return "rested"

@fs.function(route="/counted")
def count(n: int):
    yield from range(n)

app = fs.App(
    chat=fs.LLM("simulated", max_running=2, default_max_tokens=16, queue={"max_waiting": 3},
                engine_options={"emit_every": 1, "decode_s": 0.02}),
    slow=slow, count=count,
)
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "app.py").write_text(APP)
    with serve(folder, str(folder / "app.py")) as server:
        yield server


def run(*args: str, **words: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "foreserve.cli.main", *args],
        capture_output=True, text=True, timeout=60, env=os.environ | {"COLUMNS": "300"}, check=False, **words,
    )  # fmt: skip


def complete(live: Live, max_tokens: int = 8, **headers: str) -> tuple[int, Any, dict[str, str]]:
    body = {"model": "chat", "prompt": "hello", "max_tokens": max_tokens}
    return live.post("/v1/completions", body, **headers)


def test_it_greets_with_a_curl_line_that_works(live: Live):
    assert f"at {live.url}" in live.output()
    line = next(line for line in live.output().splitlines() if line.strip().startswith("curl"))
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True)
    assert '"object":"chat.completion"' in done.stdout
    assert "Functions: POST /v1/functions/slow, /counted" in live.output()


def test_it_says_at_once_where_it_listens(live: Live):
    listens, ready = (live.output().index(words) for words in ("listening on 127.0.0.1 port", "is ready after"))
    assert listens < ready


def test_both_kinds_are_served_by_worker_processes(live: Live):
    assert complete(live)[0] == 200
    assert live.post("/v1/functions/slow", {"seconds": 0.0})[1] == {"result": "rested"}
    assert live.post("/v1/functions/count", {"n": 3})[1] == {"result": [0, 1, 2]}
    pids = {replica["pid"] for service in live.status()["services"] for replica in service["replicas"]}
    assert len(pids) == 3
    assert live.process.pid not in pids


def test_a_full_queue_refuses_at_once_with_reasons_and_the_ledger_balances(live: Live):
    answers: list[tuple[int, Any, dict[str, str]]] = []
    threads = [threading.Thread(target=lambda: answers.append(complete(live, 60))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shed = [answer for answer in answers if answer[0] == 429]
    assert len(shed) + sum(answer[0] == 200 for answer in answers) == 16
    assert shed
    assert all(float(headers["retry-after"]) >= 1 for _, _, headers in shed)
    assert all("queue" in body["error"]["message"] or "wait" in body["error"]["message"] for _, body, _ in shed)
    assert live.status()["open"] == 0


def test_a_deadline_ends_the_work(live: Live):
    status, body, headers = complete(live, 500, x_slo_ms="200")
    assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
    assert headers["x-should-retry"] == "false"
    end = time.monotonic() + 5
    while any(service["running"] for service in live.status()["services"]):
        assert time.monotonic() < end, "the engine still works on what has expired"
        time.sleep(0.02)


def test_a_client_that_goes_away_frees_its_slot(live: Live):
    host, port = live.url.removeprefix("http://").split(":")
    body = b'{"model": "chat", "prompt": "hello", "max_tokens": 5000, "stream": true}'
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        assert b"200 OK" in client.recv(100)
    end = time.monotonic() + 5
    while "/v1/completions' 499" not in live.output():
        assert time.monotonic() < end, "the log does not tell that the client left"
        time.sleep(0.02)
    assert "Traceback" not in live.output()
    while live.status()["open"] or any(r["running"] for s in live.status()["services"] for r in s["replicas"]):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_worker_is_replaced_and_its_unseen_work_is_done(live: Live):
    service = next(s for s in live.status()["services"] if s["name"] == "slow")
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(live.post("/v1/functions/slow", {"seconds": 1.0})))
    thread.start()
    time.sleep(0.5)
    os.kill(service["replicas"][0]["pid"], signal.SIGKILL)
    thread.join(30)
    assert answers[0][:2] == (200, {"result": "rested"})
    live.wait_ready(["slow"])
    assert next(s for s in live.status()["services"] if s["name"] == "slow")["replicas"][0]["name"] == "slow/0.2"
    assert "SIGKILL" in live.output()


def test_a_worker_killed_in_the_middle_of_a_stream_is_not_noticed_in_the_answer(live: Live):
    live.wait_ready(["chat"])
    body = {"model": "chat", "prompt": "hello", "max_tokens": 60, "stream": True}
    said: list[str] = []
    usage = None
    with live.stream("/v1/completions", {**body, "stream_options": {"include_usage": True}}) as events:
        for event in events:
            if event["choices"]:
                said.append(event["choices"][0]["text"])
            usage = event.get("usage") or usage
            if len(said) == 10:
                service = next(s for s in live.status()["services"] if s["name"] == "chat")
                os.kill(service["replicas"][0]["pid"], signal.SIGKILL)
    status, whole, _ = complete(live, 60)
    assert status == 200
    assert "".join(said) == whole["choices"][0]["text"]
    assert usage == whole["usage"]
    assert "replica_lost" not in live.output()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "chat", "messages": []}, 400, "messages"),
        ({"model": "chat", "messages": [{"role": "user", "content": "x" * 100_000}]}, 400, "context"),
        ({"model": "nope", "messages": [{"role": "user", "content": "hi"}]}, 404, "chat"),
        ({"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 0}, 400, "max_tokens"),
        ({"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10**9}, 400, "context"),
        ({"model": "chat", "messages": [{"role": "user", "content": "hi"}], "tools": [{}]}, 400, "tools"),
        (b'{"model": "chat", "messages": [{"role": "user", "content": "\xff\xfe"}]}', 400, ""),
        (b'{"model": ', 400, ""),
    ],
)
def test_what_is_wrong_is_said(live: Live, body: Any, status: int, words: str):
    got, answer, _ = live.post("/v1/chat/completions", body)
    assert got == status
    assert words in answer["error"]["message"]
    assert complete(live)[0] == 200


def test_a_body_that_is_too_large(live: Live):
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {50 * 2**20}\r\n\r\n"
        client.sendall(head.encode())
        assert b" 413 " in client.recv(200)
    assert complete(live)[0] == 200


def test_history_survives(tmp_path: Path):
    (tmp_path / "app.py").write_text(APP)
    with serve(tmp_path, str(tmp_path / "app.py")) as server:
        assert complete(server)[0] == 200
        server.process.terminate()
        assert server.process.wait(20) == 0 or server.process.returncode == -signal.SIGTERM
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / "history.sqlite3")) as db:
        rows = db.execute("SELECT * FROM requests").fetchall()
    assert len(rows) == 1


def test_a_dry_run_reports_and_starts_nothing(tmp_path: Path):
    (tmp_path / "app.py").write_text(APP)
    done = run("serve", str(tmp_path / "app.py"), "--dry-run", "--port", "0")
    assert done.returncode == 0, done.stderr
    assert "nothing was started" in done.stderr
    (tmp_path / "wrong.py").write_text('import foreserve as fs\napp = fs.App(chat=fs.LLM("/no/such/model.gguf"))\n')
    done = run("serve", str(tmp_path / "wrong.py"), "--dry-run", "--port", "0")
    assert done.returncode == 1
    assert "/no/such/model.gguf" in done.stderr


def test_a_port_in_use_is_named(live: Live, tmp_path: Path):
    (tmp_path / "app.py").write_text(APP)
    port = live.url.rsplit(":", 1)[1]
    done = run("serve", str(tmp_path / "app.py"), "--port", port)
    assert done.returncode != 0
    assert port in done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "app file"),
        (["no-such-app.py"], "no-such-app.py"),
        (["a.py", "--upstream", "http://127.0.0.1:1"], "app file, or"),
        (["--upstream", "ftp://x"], "http"),
        (["--upstream", "http://127.0.0.1:1"], "127.0.0.1:1"),
    ],
)
def test_wrong_arguments(args: list[str], words: str):
    done = run("serve", *args)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("key", ["", " "])
def test_an_empty_key_does_not_open_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str):
    (tmp_path / "app.py").write_text("import foreserve as fs\n\napp = fs.App(chat=fs.LLM('simulated'))\n")
    given = run("serve", str(tmp_path / "app.py"), "--dry-run", "--api-key", key)
    assert (given.returncode, "--api-key is empty" in given.stderr) == (2, True), given.stderr
    monkeypatch.setenv("FORESERVE_API_KEY", key)
    unset = run("serve", str(tmp_path / "app.py"), "--dry-run")
    assert (unset.returncode, "FORESERVE_API_KEY is set but empty" in unset.stderr) == (2, True), unset.stderr


def test_a_service_that_cannot_start_ends_the_server_with_its_reason(tmp_path: Path):
    (tmp_path / "app.yaml").write_text("services: {f: {kind: function, target: 'nothing_here:f'}}\n")
    done = run("serve", str(tmp_path / "app.yaml"), "--port", "0")
    assert done.returncode == 1
    assert "nothing_here" in done.stderr
    assert "Traceback" not in done.stderr.split("foreserve:")[-1]


@pytest.mark.parametrize("on", ["moon", "local://here", "ray://", "ray://10.0.0.1"])
def test_where_replicas_cannot_run(tmp_path, on):
    (tmp_path / "app.py").write_text(APP)
    done = run("serve", str(tmp_path / "app.py"), "--on", on)
    assert done.returncode == 2
    assert "--on is" in done.stderr
    assert "valid:" in done.stderr
