"""The whole server with its replicas on Ray, as a user starts it."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from benchmarks.servers import descendants
from tests.cli.live import serve
from tests.ray_cluster import MARKS

pytestmark = [*MARKS, pytest.mark.timeout(120)]

APP = """
import time
import foreserve as fs

@fs.function(ray={"cpus": 0.5})
def count(n: int, step_s: float = 0.0):
    for number in range(n):
        time.sleep(step_s)
        yield number

app = fs.App(
    count=count,
    chat=fs.LLM("simulated", default_max_tokens=16, ray={"cpus": 0.5}),
    cluster={"object_store_mb": 100},
)
"""


def commands(pid):
    """What it has started, by process."""
    found = {}
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def until(true, limit_s=30.0):
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("whom", ["bootstrap.py worker", "ray::ReplicaActor"])
def test_streams_deaths_and_the_end(tmp_path, whom):
    (tmp_path / "app.py").write_text(APP)
    with serve(tmp_path, str(tmp_path / "app.py"), "--on", "ray") as live:
        assert live.post("/v1/completions", {"model": "chat", "prompt": "hello"})[0] == 200
        (replica,) = next(each for each in live.status()["services"] if each["name"] == "count")["replicas"]
        assert replica["node"]
        with live.stream("/v1/functions/count?stream=true", {"n": 100, "step_s": 0.1}) as events:
            next(events)
            killed = [pid for pid, command in commands(live.process.pid).items() if whom in command]
            assert len(killed) == 2
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            *_, last = events
        assert last["error"]["code"] == "replica_lost"
        until(lambda: all(service["ready"] for service in live.status()["services"]))
        assert live.post("/v1/completions", {"model": "chat", "prompt": "hello"})[0] == 200
        requests = live.status()["outcomes"]["requests"]
        assert (requests["done"], requests["failed"], sum(requests.values())) == (2, 1, 3)
        started = list(commands(live.process.pid))
        live.process.send_signal(signal.SIGINT)
        assert live.process.wait(40) in (0, 130), live.output()  # 130: ended by Ctrl-C
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), 10.0)
        assert "Traceback" not in live.output()
