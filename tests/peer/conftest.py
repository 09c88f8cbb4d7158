"""Real servers of other projects, each from an interpreter of its own, and Foreserve in front of them.

`FORESERVE_PEER_LLAMACPP` and `FORESERVE_PEER_VLLM` name the interpreters (`setup.sh` makes them); without them the
tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from benchmarks.servers import free_port

from foreserve.models.catalog import locate
from foreserve.models.prepare import prepare

pytest.register_assert_rewrite("tests.peer.compare")

HERE = Path(__file__).parent
MODEL = "smollm2"


@contextmanager
def process(command: list[str], url: str, ready: str, limit_s: float, log: Path, **env: str) -> Iterator[str]:
    """A server process, from when `ready` answers 200 until the end of the block."""
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **env}
        )
        try:
            until = time.monotonic() + limit_s
            while not _ready(url + ready):
                if server.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"{command[0]} did not become ready:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.2)
            yield url
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            assert server.stdin is not None
            server.stdin.close()


def _ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def interpreter(name: str) -> str:
    path = os.environ.get(name)
    if not path:
        pytest.skip(f"{name} names no interpreter; tests/peer/setup.sh makes one")
    return path


@contextmanager
def llamacpp_server(log: Path, *words: str) -> Iterator[str]:
    python = interpreter("FORESERVE_PEER_LLAMACPP")
    port = free_port()
    command = [python, str(HERE / "llamacpp_server.py"), str(locate(MODEL, "peer").path), str(port), *words]
    with process(command, f"http://127.0.0.1:{port}", "/health", 60, log, OMP_WAIT_POLICY="PASSIVE") as url:
        yield url


@contextmanager
def vllm_server(log: Path) -> Iterator[str]:
    python = interpreter("FORESERVE_PEER_VLLM")
    port = free_port()
    checkpoint = prepare(locate(MODEL, "peer"), "transformers", "bf16").weights_path
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint), "--served-model-name", MODEL,
        "--enforce-eager", "--max-model-len", "2048", "--max-num-seqs", "4", "--host", "127.0.0.1",
        "--port", str(port), "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
    ]  # fmt: skip
    env = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": "",
    }  # fmt: skip
    with process(command, f"http://127.0.0.1:{port}", "/health", 300, log, **env) as url:
        yield url


@contextmanager
def foreserve(log: Path, *urls: str, options: tuple[str, ...] = ()) -> Iterator[str]:
    """`foreserve serve --upstream URL ...`, as a user starts it."""
    port = free_port()
    command = [shutil.which("foreserve", path=str(Path(sys.executable).parent)) or "foreserve", "serve"]
    for url in urls:
        command += ["--upstream", url]
    command += ["--port", str(port), *options]
    with process(command, f"http://127.0.0.1:{port}", "/health/ready", 60, log) as url:
        yield url


class Pair:
    """A server directly, and through Foreserve."""

    def __init__(self, direct: str, through: str, model: str) -> None:
        self.direct = direct
        self.through = through
        self.model = model


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peer")


@pytest.fixture(scope="module")
def llamacpp(logs: Path) -> Iterator[Pair]:
    with (
        llamacpp_server(logs / "llamacpp.log") as direct,
        foreserve(logs / "front.log", direct) as through,
    ):
        model = httpx.get(through + "/v1/models").json()["data"][0]["id"]
        yield Pair(direct, through, model)


@pytest.fixture(scope="module")
def vllm(logs: Path) -> Iterator[Pair]:
    with vllm_server(logs / "vllm.log") as direct, foreserve(logs / "front-vllm.log", direct) as through:
        yield Pair(direct, through, MODEL)
