"""Tokens a second of the same app and load on worker processes of this machine and on Ray actors, in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import Report, console
from benchmarks.data import samples
from benchmarks.load import send_now
from benchmarks.servers import foreserve
from foreserve.loadgen.arrivals import ClosedLoop
from foreserve.loadgen.client import ClientOptions
from foreserve.loadgen.prompts import Prompt
from foreserve.loadgen.records import Ending, Result
from foreserve.loadgen.run import Limits

CLIENTS = 16
TOKENS = 64

APP = f"""
import foreserve as fs
app = fs.App(
    chat=fs.LLM("smollm2", engine="openvino", threads=1, max_running={CLIENTS}, prefix_caching=False,
                queue={{"max_wait_s": 600.0}}),
    state={{"history": False}},
)
"""

UNTOLD = (Ending.CUT, Ending.TIMEOUT, Ending.CONNECTION, Ending.ABANDONED)
"""Endings of which nobody told the client."""


def lost(results: Sequence[Result]) -> int:
    """Requests whose client was told no outcome."""
    return sum(result.ending in UNTOLD for result in results)


def tokens(folder: Path, report: Report, *, repetitions: int, requests: int) -> tuple[list[float], list[float], int]:
    """Tokens a second on local processes and on Ray, by repetition, and what was lost."""
    app = folder / "app.py"
    app.write_text(APP)
    texts = [sample.prompt for sample in samples("sharegpt", CLIENTS + requests, report, max_chars=600)]
    prompts = [Prompt(prompt=text, max_tokens=TOKENS) for text in texts]
    found: dict[str, list[float]] = {"local": [], "ray": []}
    missing = 0
    for _ in range(repetitions):
        for on, speeds in found.items():
            with foreserve(str(app), "--on", on) as server:
                extra = {"ignore_eos": True, "temperature": 0}
                options = ClientOptions(url=server.url, model="chat", endpoint="completions", extra=extra)
                limits = Limits(requests=requests, duration_s=300.0)
                send_now(options, prompts[:4], ClosedLoop(4), Limits(requests=4, duration_s=60.0))
                time.sleep(5.0)  # Ray goes on starting processes of its own for a while
                results = send_now(options, prompts[CLIENTS:], ClosedLoop(CLIENTS), limits).results
            missing += lost(results)
            seconds = max(result.ended for result in results) - min(result.sent for result in results)
            speeds.append(sum(result.output_tokens for result in results) / seconds)
            console.print(f"  {on}: {speeds[-1]:.0f} tokens/s")
    return found["local"], found["ray"], missing
