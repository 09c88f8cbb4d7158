"""Servers as subprocesses: started on chosen cores, waited for, and always ended with everything they started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import ROOT

# Proxies of the environment are for other machines.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerFailed(RuntimeError):
    """It ended, or did not become ready in time; the message ends with its log."""


class Server:
    """A running server: its address, its process (the leader of its own group) and its log."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.url = url
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def children(self) -> list[int]:
        """The processes that it has started, and theirs; workers are among them."""
        return descendants(self.pid)

    def log_tail(self, length: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-length:]

    def wait_ready(self, path: str, limit_s: float) -> float:
        """Until `path` answers 200; the seconds it took. Raises ServerFailed."""
        start = time.perf_counter()
        while True:
            if self.process.poll() is not None:
                raise ServerFailed(f"{self.url} ended with status {self.process.returncode}:\n{self.log_tail()}")
            with contextlib.suppress(OSError), _direct.open(self.url + path, timeout=2) as response:
                if response.status == 200:
                    return time.perf_counter() - start
            if time.perf_counter() - start > limit_s:
                raise ServerFailed(f"{self.url}{path} was not ready within {limit_s:g} s:\n{self.log_tail()}")
            time.sleep(0.05)

    def stop(self, limit_s: float = 15.0) -> None:
        """SIGTERM, then SIGKILL for whatever is left of its group and of what it had started."""
        children = self.children()
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(limit_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(limit_s)


@contextmanager
def running(
    command: Sequence[str],
    port: int,
    *,
    ready: str = "/health/ready",
    limit_s: float = 120.0,
    cores: Collection[int] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Any server that listens on 127.0.0.1:`port`, from ready to the end of the block; on `cores` when given."""
    with tempfile.TemporaryDirectory(prefix="foreserve-bench-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out, on_cores(cores):
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        server = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            server.wait_ready(ready, limit_s)
            yield server
        finally:
            server.stop()


@contextmanager
def foreserve(
    *args: str,
    port: int | None = None,
    limit_s: float = 120.0,
    cores: Collection[int] | None = None,
    engine_cores: Collection[int] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """`foreserve serve ARGS`: the gateway on `cores`, its worker processes on `engine_cores`.

    All of it starts on the engines' cores, since engines may settle on those that they find; then the gateway moves.
    """
    port = free_port() if port is None else port
    command = [sys.executable, "-m", "foreserve.cli.main", "serve", *args, "--port", str(port)]
    with running(command, port, limit_s=limit_s, cores=engine_cores or cores, env=env) as server:
        if engine_cores is not None and cores is not None:
            pin(server.pid, cores)
        yield server


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def on_cores(cores: Collection[int] | None) -> Iterator[None]:
    """Processes that this thread starts within the block begin on these cores.

    A child inherits the mask of the thread that starts it; so nothing needs to run between fork and exec, which is
    not safe once threads exist.
    """
    before = os.sched_getaffinity(0)
    if cores is not None:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin(pid: int, cores: Collection[int]) -> None:
    """Keep every thread that a process has now, and those that they start, on these cores."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)


def descendants(pid: int) -> list[int]:
    """Children of a process and theirs, nearest first."""
    found: list[int] = []
    queue = [pid]
    while queue:
        parent = queue.pop(0)
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                queue += [int(child) for child in task.read_text().split()]
        found.append(parent)
    return found[1:]
