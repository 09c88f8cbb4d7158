"""A real `foreserve serve` in a process of its own, for tests of what only the whole shows."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.servers import free_port

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Live:
    """The process, its address and what it has printed."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    def get(self, path: str, timeout: float = 10.0) -> Any:
        with _direct.open(self.url + path, timeout=timeout) as reply:
            return json.loads(reply.read())

    def post(self, path: str, body: Any, timeout: float = 60.0, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers (lower case), also of an error."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with _direct.open(request, timeout=timeout) as reply:
                return reply.status, json.loads(reply.read()), {k.lower(): v for k, v in reply.headers.items()}
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null"), {k.lower(): v for k, v in error.headers.items()}

    @contextlib.contextmanager
    def stream(self, path: str, body: Any, timeout: float = 60.0) -> Iterator[Iterator[Any]]:
        """The events of a streamed answer, up to `[DONE]`."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        with _direct.open(request, timeout=timeout) as reply:
            lines = (line.removeprefix(b"data: ").strip() for line in reply if line.startswith(b"data: "))
            yield (json.loads(line) for line in lines if line != b"[DONE]")

    def status(self) -> dict[str, Any]:
        return self.get("/v1/foreserve/status")

    def wait_ready(self, services: Sequence[str] = (), limit_s: float = 60.0) -> None:
        end = time.monotonic() + limit_s
        while True:
            assert self.process.poll() is None, self.output()
            with contextlib.suppress(OSError):
                told = {service["name"]: service["ready"] for service in self.status()["services"]}
                if all(told[name] for name in services or told):
                    return
            assert time.monotonic() < end, f"not ready within {limit_s} s:\n{self.output()}"
            time.sleep(0.05)

    def output(self) -> str:
        return self.log.read_text(errors="replace")


@contextlib.contextmanager
def serve(tmp_path: Path, *args: str, wait: bool = True, env: dict[str, str] | None = None) -> Iterator[Live]:
    """`foreserve serve ARGS --port FREE`, ended with the block."""
    port = free_port()
    log = tmp_path / f"serve-{port}.log"
    state = {"FORESERVE_STATE": str(tmp_path / "state"), "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "200"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "foreserve.cli.main", "serve", *args, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | state | (env or {}),
            start_new_session=True,
        )
    live = Live(process, f"http://127.0.0.1:{port}", log)
    try:
        if wait:
            live.wait_ready()
        yield live
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
