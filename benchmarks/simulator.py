"""How fast the simulator is, and what it holds: simulated requests a second and peak memory.

Each point is a process of its own: the default app of one service (order, admission, look-ahead, length prediction with
trainings, ledger, figures of the run) with simulated replicas at 0.8 of what they can do, and a generated trace of
log-normal lengths, several tenants and deadlines, which is streamed and nowhere written. The same seed must give the
same outcomes each time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import pace
from benchmarks.common import ROOT, Report, arguments, console, picture
from foreserve.app import App
from foreserve.engines.profile import EngineProfile, linear
from foreserve.loadgen.arrivals import generator
from foreserve.services.llm import LLM
from foreserve.simulation.study import simulate
from foreserve.traces.row import Header, TraceRow

LOAD = 0.8
TENANTS = 16
MOST_TOKENS = 1024
DEADLINE_S = 20.0
"""Of every third request."""

PROMPT, ANSWER = (4.5, 0.8), (3.4, 0.9)
"""Mean and deviation of the logarithms of lengths in tokens."""

DRAWN = 4096
"""Rows that are drawn at once."""

REPLICAS = (1, 16, 256)
REQUESTS = (10_000, 100_000, 1_000_000)
REPEATED = 100_000
"""Points of so many requests are measured several times; longer ones take minutes each."""


class Generated:
    """A trace that is drawn anew, and the same, each time it is read. Implements `Trace`."""

    skipped = 0

    def __init__(self, requests: int, rate: float, seed: int) -> None:
        self.header = Header(name=f"log-normal, seed {seed}")
        self._requests, self._rate, self._seed = requests, rate, seed

    def __len__(self) -> int:
        return self._requests

    def __iter__(self) -> Iterator[TraceRow]:
        rng = generator(self._seed)
        at = 0.0
        for first in range(0, self._requests, DRAWN):
            count = min(DRAWN, self._requests - first)
            gaps = rng.exponential(1.0 / self._rate, count).tolist()
            prompts = np.clip(rng.lognormal(*PROMPT, count), 1, 4000).astype(int).tolist()
            answers = np.clip(rng.lognormal(*ANSWER, count), 1, MOST_TOKENS).astype(int).tolist()
            for place, (gap, prompt, answer) in enumerate(zip(gaps, prompts, answers, strict=True), first):
                at += gap
                yield TraceRow(
                    arrival=at,
                    input_tokens=prompt,
                    output_tokens=answer,
                    most_tokens=MOST_TOKENS,
                    tenant=f"t{place % TENANTS}",
                    deadline_s=DEADLINE_S if place % 3 == 0 else None,
                )


def profile() -> EngineProfile:
    """Of every replica."""
    return linear(
        slots=pace.SLOTS,
        kv_tokens=60_000,
        prefill_s_per_token=pace.PREFILL_S,
        decode_s=pace.DECODE_S,
        decode_s_per_seq=pace.DECODE_S_PER_SEQ,
    )


def saturation() -> float:
    """Requests a second that one replica can serve with all slots in use."""
    return pace.saturation((row.input_tokens, row.output_tokens) for row in Generated(20_000, 1.0, seed=1))


def point(requests: int, replicas: int, seed: int, progress: Callable[[int], None]) -> dict[str, Any]:
    """One simulation in this process: what it took and how it went."""
    trace = Generated(requests, saturation() * LOAD * replicas, seed)
    app = App(chat=LLM("simulated", replicas=replicas), state={"history": False})
    began, busy = time.perf_counter(), time.process_time()
    result = simulate(app, {"chat": profile()}, trace, seed=seed, progress=progress)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - busy
    assert sum(result.total.outcomes.values()) == requests
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "peak_mb": peak_mb(),
        "outcomes": dict(result.total.outcomes),
        "ended_s": result.ended_s,
    }


def peak_mb() -> float:
    """The most memory that this process has had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the system does not tell the peak of a process's memory")


def apart(requests: int, replicas: int, seed: int, progress: Callable[[int], None]) -> dict[str, Any]:
    """The same in a process of its own, on one thread."""
    command = [sys.executable, "-m", "benchmarks.simulator", "--point", str(requests), str(replicas), str(seed)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **threads}) as child:
        assert child.stdout is not None
        for line in child.stdout:
            told = json.loads(line)
            if isinstance(told, dict):
                return told
            progress(told)
    raise RuntimeError(f"the simulation of {requests} requests and {replicas} replicas ended with {child.returncode}")


def words(count: int) -> str:
    """`1e4` for ten thousand."""
    return f"{count:.0e}".replace("e+0", "e")


def measure(report: Report, requests: tuple[int, ...], repeats: int, seed: int) -> dict[int, dict[int, float]]:
    """All points; the simulated requests a second of each by replicas and requests."""
    rates: dict[int, dict[int, float]] = {replicas: {} for replicas in REPLICAS}
    runs = [(n, replicas, repeats if n <= REPEATED else 1) for n in requests for replicas in REPLICAS]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("simulating", total=sum(n * times for n, _, times in runs))
        done = 0
        for n, replicas, times in runs:
            bar.update(task, description=f"{words(n)} requests, {replicas} replicas")
            empty = apart(1, replicas, seed, lambda ended: None)
            found = []
            for _ in range(times):
                found.append(apart(n, replicas, seed, lambda ended: bar.update(task, completed=done + ended)))  # noqa: B023 - called here
                done += n
                bar.update(task, completed=done)
            if any((one["outcomes"], one["ended_s"]) != (found[0]["outcomes"], found[0]["ended_s"]) for one in found):
                raise RuntimeError(f"the same seed gave two simulations of {n} requests and {replicas} replicas")
            name = f"{replicas}_{words(n)}"
            rates[replicas][n] = report.add(f"per_s_{name}", [n / one["wall_s"] for one in found])
            report.add(f"per_cpu_s_{name}", [n / one["cpu_s"] for one in found])
            report.add(f"mb_{name}", [one["peak_mb"] for one in found])
            report.add(f"mb_beyond_empty_{name}", [one["peak_mb"] - empty["peak_mb"] for one in found])
            outcomes = ", ".join(f"{kind} {count}" for kind, count in found[0]["outcomes"].items() if count)
            console.print(f"{words(n)} requests, {replicas} replicas: {rates[replicas][n]:,.0f}/s; {outcomes}")
    return rates


def draw(rates: dict[int, dict[int, float]]) -> None:
    """Rates by requests, a line for each number of replicas."""
    with picture("simulator", "Simulated requests a second on one core") as (axes,):
        for replicas, by_count in rates.items():
            axes.plot(list(by_count), list(by_count.values()), marker="o", label=f"{replicas} replicas")
        axes.set(xscale="log", xlabel="requests of the trace", ylabel="simulated requests a second")
        axes.set_ylim(bottom=0)
        axes.legend()


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--point", nargs=3, type=int, metavar=("REQUESTS", "REPLICAS", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0)


def main() -> None:
    """Measure and report."""
    args = arguments(__doc__, more=_options)
    if args.point is not None:
        n, replicas, seed = args.point
        print(json.dumps(point(n, replicas, seed, lambda ended: print(ended, flush=True))))
        return
    requests, repeats = ((2_000, 10_000), 1) if args.quick else (REQUESTS, 3)
    settings = {"requests": requests, "replicas": REPLICAS, "load": LOAD, "repeats": repeats, "seed": args.seed}
    report = Report("simulator", settings)
    rates = measure(report, requests, repeats, args.seed)
    longest = max(n for n in requests if n <= REPEATED)
    for replicas, goal in ((16, "10,000, not below 4,000"), (256, "")):
        name = f"{replicas}_{words(longest)}"
        report.goals[f"requests_per_s_{replicas}"] = goal
        report.figures[f"requests_per_s_{replicas}"] = report.figures[f"per_s_{name}"]
        if f"per_s_{name}" in report.spread:
            report.spread[f"requests_per_s_{replicas}"] = report.spread[f"per_s_{name}"]
    most = max(requests)
    report.figures[f"peak_mb_{words(most)}"] = report.figures[f"mb_16_{words(most)}"]
    report.note(f"requests_per_s are of {words(longest)} requests by wall time, trainings included, on one thread")
    report.note(f"per_s by wall time, per_cpu_s by that of the process; medians of {repeats} up to {words(REPEATED)}")
    report.note("mb_beyond_empty: the peak less that of a simulation of one request with as many replicas")
    report.note(f"saturation of one replica: {saturation():.2f} requests/s; load {LOAD} of it")
    draw(rates)
    report.finish(args.json)


if __name__ == "__main__":
    main()
