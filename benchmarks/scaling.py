"""How many replicas, and when: the hybrid policy beside a fixed number, reactive policies and the forecast alone.

On the virtual clock, with predicted lengths: five days of ServeGen's `m-small`, after a week of history, 24 times as
fast, with cold starts of 25 s. Three of its largest clients each have a service of their own (a model for one customer,
scaled so that its load keeps 1.5 replicas busy on average), and the whole model is one more, smoother service.

The reactive ways and the forecast alone are tuned on the last day of history: the cheapest of a small grid that meets
the objective there, else the one that comes nearest; ours is as it comes. `static` is the least fixed number that meets
the objective in the very days that are measured, which nobody could know beforehand. So many services, days and tries
are meant for half an hour on two cores. `--live` scales worker processes on this machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Final

import msgspec
import numpy as np
from rich.progress import Progress

from benchmarks import scaling_traces
from benchmarks.common import Report, arguments, console, picture
from benchmarks.scaling_report import draw, table
from benchmarks.scaling_runs import START_S, TARGET, Ran, Way, profile, run
from benchmarks.scaling_traces import DAY_S, SPEED, Load
from foreserve.simulation.need import Need

CLIENTS: Final = (36, 41, 19)
"""Three of the four with the largest load, as replicas see it."""

NEED: Final = 1.5
WHOLE: Final = "m-small"
WHOLE_NEED: Final = 2.5
LONGER: Final = 4
"""Of the clients' requests, as `scaling_traces.LONGER` is of the whole model's."""

WINDOW_S: Final = 600.0 / SPEED
HOUR_S: Final = DAY_S / SPEED
"""A day of the trace."""

MOST: Final = 24
BOUNDS: Final = (1, MOST)


class Plan(msgspec.Struct, frozen=True):
    """What is played: so many days, of which the first `begin` are history; tuning is on `tuned` days before that."""

    services: tuple[str, ...]
    days: float
    begin: float
    tuned: float
    seed: int
    lead: float = 0.5
    """Days before those that count, in which everything starts up."""
    small: bool = False
    """Whether only the first settings of each way are tried."""


FULL: Final = Plan((*(f"client {n}" for n in CLIENTS), WHOLE), days=12.0, begin=7.0, tuned=1.0, seed=0, lead=0.25)
QUICK: Final = Plan(("client 31",), days=2.4, begin=2.0, tuned=0.25, seed=0, lead=0.1, small=True)


def grid(plan: Plan) -> dict[str, list[Way]]:
    """Each way and the settings of it that are tried. Ours is as it comes.

    `reactive` are PreServe's reactive baseline (thresholds of how full KV caches are) and what an HPA or Ray Serve does
    (a target of requests for each replica, fewer after a while).
    """
    every = {
        "reactive": [
            *(
                Way("reactive", "reactive", {"target_ongoing": each, "down_s": down}, BOUNDS)
                for each, down in ((12.0, 2 * WINDOW_S), (6.0, 2 * WINDOW_S), (3.0, 2 * WINDOW_S))
            ),
            *(
                Way("reactive", "thresholds", {"above": above, "below": below, "look_s": 10.0}, BOUNDS)
                for above, below in ((0.4, 0.15), (0.9, 0.2))
            ),
        ],
        "forecast": [Way("forecast", "forecast", {"target": each}, BOUNDS) for each in (0.8, 0.6)],
        "hybrid": [Way("hybrid", "hybrid", {}, BOUNDS)],
    }
    return {name: ways[:1] if plan.small else ways for name, ways in every.items()}


PEERS: Final = ("static", "reactive", "forecast", "hybrid")
OURS: Final = "hybrid"


@cache
def load_of(service: str, plan: Plan) -> Load:
    """Its whole trace, scaled so that the days that are measured keep `NEED` replicas busy on average."""
    whole = service == WHOLE
    clients = None if whole else [int(service.rpartition(" ")[2])]
    longer = scaling_traces.LONGER if whole else LONGER
    need = Need(profile())

    def drawn(per_s: float) -> Load:
        return scaling_traces.servegen(service, per_s, plan.days, plan.seed, clients, longer)

    sample = drawn(1.0).between(plan.begin * HOUR_S, plan.days * HOUR_S)
    busy = sum(map(need.seconds, sample.input_tokens.tolist(), sample.output_tokens.tolist())) / sample.span_s
    return drawn((WHOLE_NEED if whole else NEED) / busy)


def measured(service: str, way: Way, plan: Plan) -> Ran:
    """The days that count."""
    return run(
        load_of(service, plan), way, begin_s=plan.begin * HOUR_S, lead_s=plan.lead * HOUR_S, end_s=plan.days * HOUR_S,
        window_s=WINDOW_S, seed=plan.seed,
    )  # fmt: skip


def tried(service: str, way: Way, plan: Plan) -> Ran:
    """The last days of the history alone, with what was before them as theirs."""
    begin_s, end_s = (plan.begin - plan.tuned) * HOUR_S, plan.begin * HOUR_S
    return run(
        load_of(service, plan),
        way,
        begin_s=begin_s,
        lead_s=plan.lead * HOUR_S,
        end_s=end_s,
        window_s=WINDOW_S,
        seed=plan.seed,
    )


def best(found: Sequence[Ran]) -> Ran:
    """The cheapest that meets the objective, else the one that comes nearest to it."""
    enough = [each for each in found if each.attained >= TARGET]
    return min(enough, key=lambda each: each.replica_hours) if enough else max(found, key=lambda each: each.attained)


def static(service: str, plan: Plan) -> Ran:
    """The least number that meets the objective, by bisection: more replicas never meet it less, but for chance."""
    found: dict[int, Ran] = {}

    def at(replicas: int) -> Ran:
        if replicas not in found:
            found[replicas] = measured(service, Way("static", replicas=replicas), plan)
        return found[replicas]

    low, high = 2, 8
    while at(high).attained < TARGET and high < MOST:
        low, high = high + 1, min(2 * high, MOST)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle).attained >= TARGET else (middle + 1, high)
    return at(high)


def one_of(job: tuple[str, str, Way | None, Plan]) -> Ran:
    """A job of a worker process."""
    what, service, way, plan = job
    if way is None:
        return static(service, plan)
    return tried(service, way, plan) if what == "tried" else measured(service, way, plan)


def all_of(jobs: Sequence[tuple[str, str, Way | None, Plan]], workers: int, tell: Callable[[], None]) -> list[Ran]:
    """Side by side, in order."""
    found = []
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for ran in pool.map(one_of, jobs):
            tell()
            found.append(ran)
    return found


def measure(plan: Plan, workers: int) -> dict[str, list[Ran]]:
    """By service, a run of each of `PEERS`, as it was tuned."""
    ways = grid(plan)
    first: list[tuple[str, str, Way | None, Plan]] = [("static", service, None, plan) for service in plan.services]
    several = [tries for tries in ways.values() if len(tries) > 1]
    first += [("tried", service, way, plan) for service in plan.services for tries in several for way in tries]
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("simulating", total=len(first) + len(plan.services) * len(ways))
        ran = all_of(first, workers, lambda: bar.advance(task))
        statics, trials = ran[: len(plan.services)], iter(ran[len(plan.services) :])
        tuned = [
            best([next(trials) for _ in tries]).way if len(tries) > 1 else tries[0]
            for _ in plan.services
            for tries in ways.values()
        ]
        last = [("measured", service, way, plan) for service, way in zip(_each(plan, len(ways)), tuned, strict=True)]
        rest = iter(all_of(last, workers, lambda: bar.advance(task)))
    return {
        service: [fixed, *(next(rest) for _ in ways)] for service, fixed in zip(plan.services, statics, strict=True)
    }


def _each(plan: Plan, times: int) -> Iterator[str]:
    for service in plan.services:
        for _ in range(times):
            yield service


def told(report: Report, by_service: dict[str, list[Ran]]) -> None:
    """The figures: ours against theirs, over the clients' services together and of the whole model alone."""
    own = [name for name in by_service if name != WHOLE]
    for names, suffix in ((own, ""), ([WHOLE] if WHOLE in by_service else [], "_whole_model")):
        if not names:
            continue
        pooled = {peer: [by_service[name][at] for name in names] for at, peer in enumerate(PEERS)}
        hours = {peer: sum(each.replica_hours for each in ran) for peer, ran in pooled.items()}
        late = {
            peer: sum(each.late for each in ran) / sum(each.requests for each in ran) for peer, ran in pooled.items()
        }
        p99 = {peer: _p99([each.normalised for each in ran]) for peer, ran in pooled.items()}
        ttft = {peer: _p99([each.ttft for each in ran]) for peer, ran in pooled.items()}
        goal = "" if suffix else "at most 0.5"
        report.add(f"replica_hours_vs_static{suffix}", hours[OURS] / hours["static"], goal)
        for key, of in (("replica_hours", hours), ("p99", p99), ("slo_violations", late)):
            report.add(f"{key}_vs_reactive{suffix}", _ratio(of[OURS], of["reactive"]), "below 1")
        for peer in PEERS:
            report.add(f"replica_hours_{peer}{suffix}", hours[peer])
            report.add(f"slo_violations_{peer}{suffix}", late[peer])
            report.add(f"p99_{peer}{suffix}", p99[peer])
            report.add(f"p99_ttft_{peer}{suffix}", ttft[peer])
        least = sum(by_service[name][0].need_hours for name in names) / hours["static"]
        report.add(f"least_vs_static{suffix}", least)


def _p99(of: Sequence[Sequence[float]]) -> float:
    """Of all together, each service counting alike: a large one would hide the others."""
    weights = np.concatenate([np.full(len(each), 1.0 / len(each)) for each in of])
    values = np.concatenate([np.minimum(each, 1e3) for each in of])
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weights[order]), 0.99 * len(of))])


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs > 0 else (1.0 if ours == theirs else float("inf"))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--live", action="store_true", help="scale worker processes on this machine instead: fleet_live"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes side by side")


def main() -> None:
    """Measure and report."""
    if "--live" in sys.argv:
        sys.argv.remove("--live")  # the rest are options of that one
        from benchmarks import fleet_live

        fleet_live.main()
        return
    args = arguments(__doc__, more=_options)
    plan = msgspec.structs.replace(QUICK if args.quick else FULL, seed=args.seed)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    settings = {**msgspec.to_builtins(plan), "start_s": START_S, "window_s": WINDOW_S, "target": TARGET, "need": NEED}
    report = Report("scaling", settings)
    if scaling_traces.servegen_path() is None:
        report.note("no ServeGen here (FORESERVE_DATA): the load is a made one that rises and falls by day")
    by_service = measure(plan, args.jobs)
    told(report, by_service)
    console.print(table(by_service))
    report.note(
        "without a suffix: the services of the largest clients together; _whole_model: all clients as one service"
    )
    report.note("p99: seconds per output token; of several services together each counts alike in it")
    report.note("least_vs_static: replicas always at full batches and never one too many, which no policy can reach")
    for service, ran in by_service.items():
        report.note(
            f"{service}: " + "; ".join(f"{each.way.name} {each.way.options}" for each in ran if each.way.options)
        )
    with picture("scaling", "Replicas against load", columns=3) as axes:
        draw(axes, by_service)
    report.finish(args.json)


if __name__ == "__main__":
    main()
