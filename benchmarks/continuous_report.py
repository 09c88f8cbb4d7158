"""The figures of the continuous benchmark: ratios of its two sides, what they are made of, and the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.common import Report, picture, ratios
from benchmarks.continuous_load import Trial

Runs = Mapping[float, Sequence[tuple[Trial, Trial]]]
"""For each share of saturation, the trials of both sides, repetition by repetition."""

MEASURES: dict[str, Callable[[Trial], float]] = {
    "mean_latency": lambda trial: float(np.mean(trial.latency_s)),
    "p50_latency": lambda trial: float(np.percentile(trial.latency_s, 50)),
    "p99_latency": lambda trial: float(np.percentile(trial.latency_s, 99)),
    "mean_capped": lambda trial: float(np.mean(trial.capped_s)),
    "p99_capped": lambda trial: float(np.percentile(trial.capped_s, 99)),
    "goodput": lambda trial: trial.goodput_per_s,
    "throughput": lambda trial: trial.tokens_per_s,
    "worst_tenant_p99": lambda trial: trial.worst_tenant_p99_s,
}

GOALS = {
    "mean_latency_vs_fcfs": "at most 0.75",
    "p99_latency_vs_fcfs": "at most 1.8",
    "goodput_vs_fcfs": "above 1",
    "throughput_vs_fcfs": "no lower than 1",
    "mean_latency_vs_fcfs_095": "at most 1",
    "goodput_vs_fcfs_095": "above 1",
}

FULL = 1.3
"""The load whose figures have no suffix."""


def add(report: Report, mix: str, runs: Runs, sides: Sequence[str]) -> None:
    """All figures of a mix: the ratios, then both sides' own."""
    prefix = "" if mix == "apps" else f"{mix}_"
    for load, trials in runs.items():
        suffix = "" if load == FULL else f"_{round(100 * load):03d}"
        for name, measure in MEASURES.items():
            ours, theirs = ([measure(trial) for trial in side] for side in zip(*trials, strict=True))
            key = f"{prefix}{name}_vs_fcfs{suffix}"
            report.add(key, ratios(ours, theirs), GOALS.get(key, ""))
        report.add(f"{prefix}mean_paired_vs_fcfs{suffix}", [_paired(*both) for both in trials])
        for side, one in zip(sides, zip(*trials, strict=True), strict=True):
            report.add(f"{prefix}{side}_mean_s{suffix}", [MEASURES["mean_latency"](trial) for trial in one])
            report.add(f"{prefix}{side}_goodput_per_s{suffix}", [trial.goodput_per_s for trial in one])
            report.add(f"{prefix}{side}_worst_done_share{suffix}", [min(t.done_share.values()) for t in one])
            endings = [trial.endings for trial in one]
            report.note(f"{mix} at {load:g} of saturation, {side}: {endings}")
    _draw(mix, runs, sides)


def _paired(ours: Trial, theirs: Trial) -> float:
    """The ratio of mean latencies in what both sides have done: who does more has more of the hard ones in its mean."""
    both = sorted(ours.done.keys() & theirs.done.keys())
    return sum(ours.done[index] for index in both) / sum(theirs.done[index] for index in both)


def tell(report: Report) -> None:
    """What a reader of the figures must know."""
    report.note(
        "latencies are from when a request was due to its end, of requests that were done; `capped` counts those that "
        "were shed or expired with their deadline, `paired` only what both sides have done"
    )
    report.note(
        "a deadline is twice the unloaded time of the true length plus 1 s, so it tells something of the length to a "
        "policy that would look; ours uses deadlines for what is still feasible and nothing else"
    )
    report.note(
        "goodput counts requests done within their deadline; throughput the tokens of requests done, while sent"
    )


def _draw(mix: str, runs: Runs, sides: Sequence[str]) -> None:
    """Latency against the share of all requests, so that what is not done is seen missing at the top."""
    name = "continuous" if mix == "apps" else f"continuous_{mix}"
    with picture(name, f"Latency of {mix}: share of all requests done within", columns=len(runs)) as axes:
        for one, (load, trials) in zip(axes, runs.items(), strict=True):
            for side, found in zip(sides, zip(*trials, strict=True), strict=True):
                latencies = np.sort(np.concatenate([trial.latency_s for trial in found]))
                asked = sum(len(trial.capped_s) for trial in found)
                one.step(latencies, np.arange(1, len(latencies) + 1) / asked, where="post", label=side)
            one.set_title(f"{load:g} of saturation")
            one.set_xlabel("seconds")
            one.set_ylim(0, 1)
            one.legend(loc="lower right")
