"""Routing by anticipated load: first tokens and objectives met on 4, 16 and 64 replicas, beside usual routers.

The paper's set-up: requests go to servers as they come, and servers queue and preempt on their own KV cache (128 slots,
36,896 tokens). All else is equal: first come first served, the same predictions, the same load. Arrivals are Poisson as
in the paper, and those of the Azure conversation trace. For each size the rate is found at which the best of the usual
routers (round robin, least requests, least utilised) meets the objectives for 95 % of requests; there they are
compared. `house` is the whole house: the same requests wait in our queue until a replica has room for them.

Weights were chosen on one half of the held-out chats and arrivals (`routing_load.py`, half 0); this reports the other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import msgspec
import numpy as np

from benchmarks.common import Report, arguments, console, median, picture
from benchmarks.routing_cost import decision_us
from benchmarks.routing_load import Case, chats, mooncake, profile, times
from benchmarks.routing_run import PER_TOKEN_S, PLACEMENTS, POLICIES, TTFT_S, Ran, simulate
from foreserve.dispatch.placement_anticipated import Anticipated

REPLICAS = {4: 12_000, 16: 24_000, 64: 48_000}
"""Requests of one run by replicas."""

SEEDS = {4: (0, 1, 2), 16: (0, 1, 2), 64: (0,)}
"""Of runs, each with its own requests and times, by replicas: many replicas differ less from one to the next."""

HEADLINE = 16
"""Replicas of the figures without a suffix."""

USUAL = ("round_robin", "least_requests", "least_utilised")
SIDES: dict[str, tuple[str, str, bool]] = {
    "round_robin": ("round_robin", "fcfs", False),
    "least_requests": ("least_requests", "fcfs", False),
    "least_utilised": ("least_utilised", "fcfs", False),
    "least_tokens": ("least_tokens", "fcfs", False),
    "anticipated": ("anticipated", "fcfs", False),
    "house fcfs": ("anticipated", "fcfs", True),
    "house hrrn": ("anticipated", "hrrn", True),
}
"""Placement, order, and whether requests wait in our queue."""

ATTAINED = 0.95
LOWEST, HIGHEST = {"poisson": 3.4, "azure": 2.4}, {"poisson": 4.4, "azure": 4.4}
"""Requests a second for each replica between which that rate is looked for."""

SWEEP = (0.8, 0.9, 1.0, 1.05)
REPORTED = 1
"""The half that is reported."""

FOUND = {4: 3.9, 16: 4.056, 64: 4.24}
"""The rates that the full form found with Poisson arrivals, for those who want the picture alone."""

LONG_REPLICAS, LONG_SPEED = 4, 0.9
LONG = ("round_robin", "least_requests", "prefix_affinity", "anticipated, no prefixes", "anticipated")


class Trial(msgspec.Struct, frozen=True):
    """One run, in words that another process can be told."""

    side: str
    arrivals: str
    replicas: int
    requests: int
    rate: float
    """For each replica, a second."""
    seed: int


@cache
def _cases() -> list[Case]:
    return chats(Report("routing", {}), REPORTED)


def tried(trial: Trial) -> Ran:
    """Run it."""
    placement, policy, queued = SIDES[trial.side]
    every = _cases()
    drawn = np.random.default_rng([trial.seed, 3]).integers(len(every), size=trial.requests)
    cases = [every[at] for at in drawn.tolist()]
    at = times(trial.arrivals, trial.requests, trial.rate * trial.replicas, trial.replicas, REPORTED, trial.seed)
    made, order = PLACEMENTS[placement](), POLICIES[policy]()
    return simulate(made, order, cases, at, trial.replicas, profile(), queued=queued)


def long_prompts(placement: str) -> Ran:
    """Mooncake's trace, faster or slower than it was, with prefix caches in the engines."""
    cases, at = mooncake(Report("routing", {}))
    later = [each / LONG_SPEED for each in at]
    return simulate(
        PLACEMENTS[placement](), POLICIES["fcfs"](), cases, later, LONG_REPLICAS, profile(long=True), queued=False
    )


class Runs:
    """Runs trials side by side, each once."""

    def __init__(self, pool: ProcessPoolExecutor, seeds: Mapping[int, Sequence[int]]) -> None:
        self._pool = pool
        self._known: dict[Trial, Ran] = {}
        self.seeds = seeds

    def all(self, trials: Sequence[Trial]) -> list[Ran]:
        """Of each, in order."""
        new = [trial for trial in dict.fromkeys(trials) if trial not in self._known]
        new.sort(key=lambda trial: -trial.requests)
        self._known.update(zip(new, self._pool.map(tried, new), strict=True))
        return [self._known[trial] for trial in trials]

    def of(self, side: str, arrivals: str, replicas: int, requests: int, rate: float) -> list[Ran]:
        """One side at one rate, seed by seed."""
        return self.all([Trial(side, arrivals, replicas, requests, rate, seed) for seed in self.seeds[replicas]])

    def attained(self, arrivals: str, replicas: int, requests: int, rate: float) -> dict[str, float]:
        """By usual router, the mean share that meets the objectives."""
        trials = [
            Trial(side, arrivals, replicas, requests, rate, seed) for side in USUAL for seed in self.seeds[replicas]
        ]
        self.all(trials)
        return {
            side: float(np.mean([ran.attainment for ran in self.of(side, arrivals, replicas, requests, rate)]))
            for side in USUAL
        }


def knee(runs: Runs, arrivals: str, replicas: int, requests: int, turns: int) -> float:
    """Requests a second for each replica at which the best usual router's attainment falls to `ATTAINED`."""
    low, high = LOWEST[arrivals], HIGHEST[arrivals]
    for _ in range(turns):
        rate = round((low + high) / 2, 4)
        best = max(runs.attained(arrivals, replicas, requests, rate).values())
        low, high = (rate, high) if best >= ATTAINED else (low, rate)
    found = min((low, high), key=lambda rate: abs(_best(runs, arrivals, replicas, requests, rate) - ATTAINED))
    console.print(f"{arrivals}, {replicas} replicas: {found:.3f} requests/s each", highlight=False)
    return found


def _best(runs: Runs, arrivals: str, replicas: int, requests: int, rate: float) -> float:
    return max(runs.attained(arrivals, replicas, requests, rate).values())


def compare(
    report: Report, runs: Runs, arrivals: str, replicas: int, requests: int, rate: float
) -> dict[str, list[Ran]]:
    """All sides at that rate: ratios of ours to theirs, and every side's own figures."""
    found = {side: runs.of(side, arrivals, replicas, requests, rate) for side in SIDES}
    paper = arrivals == "poisson"
    headline = HEADLINE if HEADLINE in report.settings["requests"] else replicas
    suffix = ("" if paper else f"_{arrivals}") + ("" if paper and replicas == headline else f"_{replicas}")

    def p99(side: str) -> float:
        return float(np.percentile(np.concatenate([ran.ttft for ran in found[side]]), 99))

    def attained(side: str) -> float:
        return float(np.mean([ran.attainment for ran in found[side]]))

    best = max(USUAL, key=attained)
    for name, side in (("", "anticipated"), ("house_", "house hrrn")):
        for other in ("least_requests", "round_robin", "least_utilised", "least_tokens"):
            goal = "at most 0.59" if not name and not suffix and other in USUAL else ""
            report.add(f"{name}p99_ttft_vs_{other}{suffix}", p99(side) / p99(other), goal)
        goal = "above 0" if not (name or suffix) else ""
        report.add(f"{name}slo_attainment_gain{suffix}", attained(side) - attained(best), goal)
    report.add(f"rate{suffix}", rate)
    for side, ran in found.items():
        key = f"{side.replace(' ', '_')}{suffix}"
        normalised = np.concatenate([each.normalised for each in ran])
        report.add(f"{key}_p99_ttft_s", p99(side))
        report.add(f"{key}_p99_normalised_s", float(np.percentile(normalised, 99)))
        report.add(f"{key}_attainment", attained(side))
        preempted = np.mean([each.preemptions for each in ran])
        by_seed = ", ".join(f"{each.attainment:.3f}" for each in ran)
        console.print(
            f"  {side}: p99 TTFT {p99(side):.3f} s, attainment {attained(side):.4f} ({by_seed}), "
            f"preemptions {preempted:.0f}",
            highlight=False,
        )
    report.note(f"{arrivals}, {replicas} replicas: the best usual router at {rate:.3f} requests/s each is {best}")
    return found


def sweep(runs: Runs, knees: dict[int, float], counts: dict[int, int]) -> None:
    """The picture: p99 TTFT and attainment by rate, a column for each size."""
    shown = [side for side in SIDES if side != "house fcfs"]
    seed = 0
    every = [
        Trial(side, "poisson", replicas, counts[replicas], round(share * rate, 4), seed)
        for replicas, rate in knees.items()
        for share in SWEEP
        for side in shown
    ]
    runs.all(every)
    for replicas, rate in knees.items():
        for side in shown:
            trials = [
                Trial(side, "poisson", replicas, counts[replicas], round(share * rate, 4), seed) for share in SWEEP
            ]
            told = ", ".join(f"{ran.ttft_p99:.2f} s ({ran.attainment:.3f})" for ran in runs.all(trials))
            console.print(f"sweep, {replicas} replicas, {side}: p99 TTFT (attainment) {told}", highlight=False)
    with picture("routing", "p99 of time to first token, by rate", columns=len(knees)) as axes:
        for one, (replicas, rate) in zip(axes, knees.items(), strict=True):
            rates = [round(share * rate, 4) for share in SWEEP]
            for side in shown:
                ran = runs.all([Trial(side, "poisson", replicas, counts[replicas], each, seed) for each in rates])
                one.plot(rates, [each.ttft_p99 for each in ran], marker="o", label=side)
            one.set(yscale="log", xlabel="requests a second for each replica", ylabel="seconds")
            one.set_title(f"{replicas} replicas")
            one.axhline(TTFT_S, color="grey", linewidth=0.8)
            one.legend(fontsize="small")


def prefixes(report: Report, pool: ProcessPoolExecutor) -> None:
    """Mooncake's trace: what knowing prefixes gives."""
    if not mooncake(report)[0]:
        return
    found = dict(zip(LONG, pool.map(long_prompts, LONG), strict=True))
    with_, without = found["anticipated"], found["anticipated, no prefixes"]
    for side, ran in found.items():
        key = f"mooncake_{side.replace(', ', '_').replace(' ', '_')}"
        report.add(f"{key}_hit_rate", ran.hit_rate)
        report.add(f"{key}_mean_ttft_s", ran.ttft_mean)
        report.add(f"{key}_p99_ttft_s", ran.ttft_p99)
    report.add("mooncake_hit_rate_vs_no_prefixes", with_.hit_rate / without.hit_rate, "above 1")
    report.add("mooncake_mean_ttft_vs_no_prefixes", with_.ttft_mean / without.ttft_mean, "below 1")
    report.add("mooncake_p99_ttft_vs_no_prefixes", with_.ttft_p99 / without.ttft_p99, "below 1")
    report.note(
        f"mooncake: its trace at {LONG_SPEED} of its speed on {LONG_REPLICAS} replicas of 600,000 KV tokens that read "
        "20,000 tokens of prompts a second; lengths by histograms of its first half"
    )


def main() -> None:
    """Measure and report."""
    args = arguments(
        __doc__,
        more=lambda parser: parser.add_argument(
            "--sweep",
            type=lambda text: [int(size) for size in text.split(",")],
            metavar="4,16,64",
            help="only the picture, for these numbers of replicas, round the rates that the full form found",
        ),
    )
    if args.sweep:
        with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            sweep(Runs(pool, SEEDS), {size: FOUND[size] for size in args.sweep}, REPLICAS)
        return
    counts = {4: 3_000} if args.quick else REPLICAS
    seeds = {4: (0,)} if args.quick else SEEDS
    turns = 3 if args.quick else 5
    settings = {"requests": counts, "seeds": seeds, "ttft_s": TTFT_S, "per_token_s": PER_TOKEN_S}
    report = Report("routing", settings)
    lengths = [(case.prompt, case.predicted) for case in chats(report, REPORTED)]
    costs = decision_us(Anticipated(), lengths, 64, 500 if args.quick else 4000, 3 if args.quick else 7)
    report.add("decision_us_64", costs, "below 50")
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores) as pool:
        runs = Runs(pool, seeds)
        knees = {replicas: knee(runs, "poisson", replicas, count, turns) for replicas, count in counts.items()}
        e2e_s = 0.0
        for replicas, rate in knees.items():
            found = compare(report, runs, "poisson", replicas, counts[replicas], rate)
            e2e_s = median([ran.e2e_mean for ran in found["anticipated"]])
        report.add("decision_share_of_a_request", median(costs) / 1e6 / e2e_s, "below 0.001")
        for replicas in () if args.quick else (4, 16):
            rate = knee(runs, "azure", replicas, counts[replicas], turns)
            compare(report, runs, "azure", replicas, counts[replicas], rate)
        prefixes(report, pool)
        sweep(runs, knees, counts)
    report.note(
        f"objectives: a first token within {TTFT_S:g} s and the whole answer within {PER_TOKEN_S:g} s for each of its "
        "tokens; figures without a number are of 16 replicas; p99 over the requests of all seeds together, since near "
        "its limit a fleet is either well or has collapsed, and a median over seeds tells neither"
    )
    report.note(
        "least_utilised goes by the KV cache's share that engines report each second; least_tokens is ours, by the "
        "same predictions; `house` waits in our queue by `hrrn`; engines: like Llama-2-7B on a 48 GB card, simulated"
    )
    report.finish(args.json)


if __name__ == "__main__":
    main()
