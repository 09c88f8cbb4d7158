"""Ten times more load than the server can carry, from clients that retry: does it keep serving what it can?

First the pace of a full house (closed loop, as many clients as slots) and the best goodput of three open loads near it;
then ten times that pace. Every request has a deadline. Clients retry twice as the official client does. The engine has
one core, gateway and clients the other (the clients yield to the gateway: they stand for other machines).
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.common import Report, arguments, bars, picture
from benchmarks.data import samples
from benchmarks.load import send
from benchmarks.servers import Server, foreserve, on_cores
from foreserve.loadgen.arrivals import ClosedLoop, generator, poisson
from foreserve.loadgen.client import ClientOptions
from foreserve.loadgen.prompts import Prompt
from foreserve.loadgen.records import Result
from foreserve.loadgen.run import Limits, Run
from foreserve.loadgen.stats import distribution, e2e, summarise

ENGINE, REST = {0}, {1}
SLOTS = 8
MAX_TOKENS = 24
QUEUE = 64

APP = f"""
import foreserve as fs
app = fs.App(
    chat=fs.LLM("smollm2", engine="openvino", threads=1, max_running={SLOTS}, prefix_caching=False,
                queue={{"max_waiting": {QUEUE}}}),
    state={{"history": False}},
)
"""


def status(server: Server) -> dict[str, Any]:
    """What the server says of itself."""
    with urllib.request.urlopen(f"{server.url}/v1/foreserve/status", timeout=10) as reply:
        answer: dict[str, Any] = json.loads(reply.read())
    return answer


def options(server: Server, slo_ms: float | None, retries: int) -> ClientOptions:
    """Text completions of a forced length."""
    headers = {} if slo_ms is None else {"x-slo-ms": str(round(slo_ms))}
    return ClientOptions(
        url=server.url, model="chat", endpoint="completions", max_tokens=MAX_TOKENS, headers=headers,
        extra={"ignore_eos": True, "temperature": 0}, retries=retries, timeout_s=120.0,
    )  # fmt: skip


def good_per_s(run: Run, slo_s: float) -> float:
    """Requests that were done within `slo_s` of the attempt that was served, for each second of sending."""
    good = [result for result in run.results if result.ending == "done" and served_s(result) <= slo_s]
    return len(good) / run.sending_s


def served_s(result: Result) -> float:
    """Seconds of the last attempt: the deadline is each attempt's own."""
    return result.attempts[-1].seconds if result.attempts else e2e(result)


class Watch:
    """Asks for the status ten times a second and keeps the longest queue."""

    def __init__(self, server: Server) -> None:
        self.longest = 0
        self._server = server

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()

    async def _look(self) -> None:
        while True:
            told = await asyncio.to_thread(status, self._server)
            self.longest = max(self.longest, *(service["waiting"] for service in told["services"]))
            await asyncio.sleep(0.5)


async def measure(server: Server, prompts: Sequence[Prompt], quick: bool, report: Report) -> None:
    """All of it, on one loop."""
    seconds = 8.0 if quick else 60.0
    full = Limits(requests=SLOTS * (3 if quick else 12))
    warm = await send(options(server, None, 0), prompts, ClosedLoop(SLOTS), full)
    times = distribution([e2e(result) for result in warm.results])
    assert times is not None
    pace = len(warm.results) / (max(r.ended for r in warm.results) - min(r.sent for r in warm.results))
    slo_s = 3.0 * times.p50
    report.settings |= {"pace_per_s": pace, "slo_s": slo_s}
    peak = 0.0
    for share in (0.9,) if quick else (0.7, 0.85, 1.0):
        limits = Limits(requests=100_000, duration_s=seconds)
        run = await send(options(server, slo_s * 1000, 2), prompts, poisson(share * pace, generator(1)), limits)
        peak = max(peak, good_per_s(run, slo_s))
    limits = Limits(requests=100_000, duration_s=seconds, max_in_flight=4096)
    async with Watch(server) as watch:
        run = await send(options(server, slo_s * 1000, 2), prompts, poisson(10 * pace, generator(2)), limits)
    refusals = [a.seconds * 1000 for r in run.results for a in r.attempts if a.status == 429]
    admitted = [served_s(result) for result in run.results if result.ending == "done"]
    refused, latency = distribution(refusals), distribution(admitted)
    assert latency is not None
    await asyncio.sleep(1.0)
    told = status(server)
    ended = sum(told["outcomes"]["requests"].values())
    unanswered = sum(1 for r in run.results if r.ending in ("timeout", "abandoned", "cut", "connection"))
    report.add("goodput_vs_peak", good_per_s(run, slo_s) / peak, "at least 0.9")
    report.add("refusal_p99_ms", refused.p99 if refused else 0.0, "below 50")
    report.add("lost_requests", float(told["open"] + unanswered), "0")
    report.add("peak_goodput_per_s", peak)
    report.add("offered_attempts_per_s", sum(len(r.attempts) for r in run.results) / run.sending_s)
    report.add("admitted_p50_s", latency.p50)
    report.add("admitted_p99_s", latency.p99, f"below the deadline of {slo_s:.2f} s")
    report.add("longest_queue", float(watch.longest), f"at most {QUEUE}")
    report.note(f"{ended} requests ended, {told['open']} open; outcomes {told['outcomes']['requests']}")
    report.note(f"clients saw {len(run.results)} requests, {unanswered} without an answer of the server")
    report.note(f"endings as the clients saw them: {summarise(run.results).endings}")
    with picture("overload", "Ten times the load that it can carry") as axes:
        bars(axes[0], {"peak": [peak], "at 10 times": [good_per_s(run, slo_s)]}, "good requests/s")


def main() -> None:
    """Run it."""
    args = arguments(__doc__)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    report = Report("overload", {"slots": SLOTS, "queue": QUEUE, "max_tokens": MAX_TOKENS, "retries": 2})
    prompts = [sample.as_prompt() for sample in samples("sharegpt", 200, report, max_chars=400)]
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "app.py"
        app.write_text(APP)
        with (
            foreserve(str(app), cores=REST, engine_cores=ENGINE) as server,
            on_cores(REST),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            os.nice(10)  # the clients stand for other machines; they shall not take the gateway's core from it
            runner.run(measure(server, prompts, args.quick, report))
    report.finish(args.json)


if __name__ == "__main__":
    main()
