"""A worker, then an actor, killed under load on Ray: how many clients were told nothing."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path

from benchmarks.cluster_tokens import lost
from benchmarks.common import Report, console
from benchmarks.load import send_now
from benchmarks.servers import Server, foreserve
from foreserve.loadgen.arrivals import ClosedLoop
from foreserve.loadgen.client import ClientOptions
from foreserve.loadgen.prompts import Prompt
from foreserve.loadgen.run import Limits

APP = """
import foreserve as fs
app = fs.App(chat=fs.LLM("simulated", replicas=2, max_running=8, ray={"cpus": 0.1}), state={"history": False})
"""


def killed(folder: Path, report: Report, seconds: float) -> int:
    """Requests whose client was told no outcome."""
    app = folder / "app.py"
    app.write_text(APP)
    with foreserve(str(app), "--on", "ray") as server:
        timers = [
            threading.Timer(share * seconds, _kill, (server, what))
            for share, what in ((0.25, "bootstrap.py"), (0.6, "ray::ReplicaActor"))
        ]
        for timer in timers:
            timer.start()
        try:
            options = ClientOptions(url=server.url, model="chat", endpoint="completions", extra={"temperature": 0})
            prompts = [Prompt(prompt="Say hello to the world. " * 20, max_tokens=100)]
            results = send_now(options, prompts, ClosedLoop(16), Limits(requests=100_000, duration_s=seconds)).results
        finally:
            for timer in timers:
                timer.cancel()
    endings = Counter(str(result.ending) for result in results)
    report.note(f"while a worker and an actor were killed: {dict(sorted(endings.items()))}")
    console.print(f"  {dict(endings)}")
    return lost(results)


def _kill(server: Server, what: str) -> None:
    """The newest of the server's processes that have `what` in their command."""
    for pid in reversed(server.children()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if what in command and "zygote" not in command and "memory" not in command:
            os.kill(pid, signal.SIGKILL)
            return
