from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.live import serve
from typer.testing import CliRunner, Result

from foreserve.cli.main import app
from foreserve.simulation.profiles import read_profile

SIMULATED = """
services:
  chat:
    kind: llm
    model: simulated
    max_running: 4
    engine_options: {prefill_s_per_token: 0.0002, decode_s: 0.004, start_s: 0.2, emit_every: 1}
state: {folder: ./state}
"""


def ran(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["calibrate", *(str(argument) for argument in arguments)])


def said(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.fixture
def app_file(tmp_path: Path) -> Path:
    file = tmp_path / "app.yaml"
    file.write_text(SIMULATED)
    return file


@pytest.mark.slow
def test_the_profile_of_a_service_goes_where_it_is_looked_for(app_file: Path, tmp_path: Path):
    result = ran(app_file, "--seconds", 5, "--starts", 2)
    assert result.exit_code == 0, result.output
    profile = read_profile(tmp_path / "state" / "profiles" / "chat.yaml")
    assert "profiles/chat.yaml" in said(result)
    assert profile.name == "chat: simulated (simulated)"
    assert profile.slots == 4
    assert profile.start_s > 0.2
    assert profile.host_bytes > 2**20
    assert 0.001 < profile.decode.seconds[0][0] < 0.1  # a machine that is late makes up for it in the next step


@pytest.mark.slow
@pytest.mark.model
def test_the_embedded_engine_can_be_measured(tmp_path: Path):
    file = tmp_path / "app.py"
    file.write_text("import foreserve as fs\napp = fs.App(chat=fs.LLM('smollm2', engine='openvino', max_running=4))\n")
    out = tmp_path / "chat.yaml"
    result = ran(file, "--quick", "--seconds", 10, "-o", out)
    assert result.exit_code == 0, result.output
    profile = read_profile(out)
    assert (profile.slots, profile.max_batched_tokens, profile.block_tokens) == (4, 512, 32)
    assert profile.prefix_caching
    assert profile.prefill.seconds[-1][0] > profile.prefill.seconds[0][0] > 0
    assert profile.decode.seconds[-1][0] > 0
    assert profile.host_bytes > 100 * 2**20


@pytest.mark.slow
def test_a_running_server_is_measured_from_outside(tmp_path: Path):
    file = tmp_path / "app.yaml"
    file.write_text(SIMULATED.replace("state: {folder: ./state}", "state: {history: false}"))
    out = tmp_path / "remote.yaml"
    with serve(tmp_path, str(file)) as live:
        result = ran("--url", live.url, "--seconds", 5, "--quick", "-o", out)
    assert result.exit_code == 0, result.output
    profile = read_profile(out)
    assert profile.slots == 4
    assert profile.context_tokens == 8192
    assert profile.machine == live.url
    assert "--kv-tokens" in said(result)
    assert "no token ids" in said(result)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running_and_writes_nothing(app_file: Path, tmp_path: Path):
    command = [sys.executable, "-m", "foreserve.cli.main", "calibrate", str(app_file), "--seconds", "60"]
    heeds = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test that a shell runs beside ignores it
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, heeds)
    try:
        worker: list[str] = []
        end = time.monotonic() + 30
        while not worker and time.monotonic() < end:
            time.sleep(0.1)
            worker = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"nothing was written" in words
    assert worker
    assert not any(Path(f"/proc/{pid}").exists() for pid in worker)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "an app file, or --url"),
        (["APP", "--url", "http://localhost:1"], "an app file, or --url"),
        (["APP", "--service", "cat"], "did you mean 'chat'?"),
        (["APP", "--seconds", "1"], "at least one start and 5 seconds"),
        (["APP", "--starts", "0"], "at least one start"),
        (["APP", "--slots", "4"], "--slots: an engine of ours tells that itself"),
        (["--url", "localhost:1"], "must start with http://"),
        (["--url", "http://127.0.0.1:1"], "http://127.0.0.1:1/v1/models"),
        (["--url", "http://127.0.0.1:1", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY holds no key"),
    ],
)
def test_what_is_wrong_is_said(app_file: Path, arguments: list[str], words: str):
    os.environ.pop("NO_SUCH_KEY", None)
    result = ran(*(str(app_file) if argument == "APP" else argument for argument in arguments))
    assert result.exit_code == 2, result.output
    assert words in said(result)


def test_several_services_need_a_name(tmp_path: Path):
    file = tmp_path / "app.py"
    file.write_text("import foreserve as fs\napp = fs.App(a=fs.LLM('simulated'), b=fs.LLM('simulated'))\n")
    result = ran(file)
    assert result.exit_code == 2
    assert "one of a, b; valid: --service NAME" in said(result)
