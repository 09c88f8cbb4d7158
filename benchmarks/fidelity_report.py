"""The figures of the fidelity benchmark: live, live again and simulated, and how far the last is from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
from rich.table import Table

from benchmarks.common import Report, console, picture
from benchmarks.fidelity_live import Went

GATES: Final = {"ttft_p50": 0.1, "ttft_p99": 0.2, "e2e_p50": 0.1, "e2e_p99": 0.2, "throughput": 0.1}
"""How far from live each may be, as a share; or as far as live is from live, where that is further."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One load: when its requests came and how they went, live twice and simulated. Warm-up is left out."""

    arrivals: list[float]
    live: list[list[Went]]
    simulated: list[Went]


def figures(arrivals: Sequence[float], went: Sequence[Went]) -> dict[str, float]:
    """Of requests that were done: seconds since their arrival, and output tokens a second until the last end."""
    done = [(at, one) for at, one in zip(arrivals, went, strict=True) if one.kind == "done"]
    first = [one.first_s for _, one in done if one.first_s is not None]
    total = [one.total_s for _, one in done]
    span = max(at + one.total_s for at, one in done) - arrivals[0]
    return {
        "ttft_p50": float(np.percentile(first, 50)),
        "ttft_p99": float(np.percentile(first, 99)),
        "e2e_p50": float(np.percentile(total, 50)),
        "e2e_p99": float(np.percentile(total, 99)),
        "throughput": sum(one.tokens for _, one in done) / span,
    }


def add(report: Report, runs: Mapping[float, Run]) -> None:
    """All figures, each load's and the worst of them; the table says which miss their gate."""
    table = Table(title="live and simulated", title_justify="left")
    for name in ("load", "figure", "live A", "live B", "simulated", "error", "live spread", "gate"):
        table.add_column(name, justify="right" if name not in ("figure", "gate") else "left")
    errors: dict[str, list[float]] = {name: [] for name in GATES}
    spreads: dict[str, list[float]] = {"p50": [], "p99": []}
    for load, run in runs.items():
        a, b = (figures(run.arrivals, went) for went in run.live)
        simulated = figures(run.arrivals, run.simulated)
        for name, gate in GATES.items():
            middle = (a[name] + b[name]) / 2
            error, spread = abs(simulated[name] - middle) / middle, abs(a[name] - b[name]) / middle
            errors[name].append(error)
            if name[-3:] in spreads:
                spreads[name[-3:]].append(spread)
            met = error <= max(gate, spread)
            if not met:
                report.note(
                    f"at {load:g} of saturation {name} misses its gate: simulated {simulated[name]:.4g}, "
                    f"live {a[name]:.4g} and {b[name]:.4g}"
                )
            table.add_row(
                f"{load:g}", name, f"{a[name]:.4g}", f"{b[name]:.4g}", f"{simulated[name]:.4g}",
                f"{(simulated[name] - middle) / middle:+.1%}", f"{spread:.1%}", "met" if met else "missed",
            )  # fmt: skip
        for name, value in simulated.items():
            suffix = f"_{round(100 * load):03d}"
            report.add(f"{name}_error{suffix}", abs(value - (a[name] + b[name]) / 2) / ((a[name] + b[name]) / 2))
            report.add(f"{name}_live{suffix}", [a[name], b[name]])
            report.add(f"{name}_simulated{suffix}", value)
        counts = [_counts(went) for went in (*run.live, run.simulated)]
        report.note(f"at {load:g} of saturation, live A {counts[0]}, live B {counts[1]}, simulated {counts[2]}")
    for name, found in errors.items():
        goal = f"at most {GATES[name]:.0%} or the live spread"
        report.add(f"{name}_error", max(found), goal)
    for name, found in spreads.items():
        report.add(f"live_spread_{name}", max(found))
    console.print(table)
    _draw(runs)


def _counts(went: Sequence[Went]) -> dict[str, int]:
    kinds = sorted({one.kind for one in went})
    return {kind: sum(one.kind == kind for one in went) for kind in kinds}


def _draw(runs: Mapping[float, Run]) -> None:
    with picture("fidelity", "Share of requests within: live twice, and simulated", columns=2 * len(runs)) as axes:
        for at, (load, run) in enumerate(runs.items()):
            sides = {"live A": run.live[0], "live B": run.live[1], "simulated": run.simulated}
            for name, went in sides.items():
                style = "-" if name != "simulated" else "--"
                done = [one for one in went if one.kind == "done"]
                first = np.sort([one.first_s for one in done if one.first_s is not None])
                total = np.sort([one.total_s for one in done])
                for one, values in ((axes[2 * at], first), (axes[2 * at + 1], total)):
                    one.step(values, np.arange(1, len(values) + 1) / len(went), style, where="post", label=name)
            for one, what in ((axes[2 * at], "TTFT"), (axes[2 * at + 1], "end to end")):
                one.set_title(f"{what} at {load:g} of saturation")
                one.set_xlabel("seconds")
                one.set_ylim(0, 1)
                one.legend(loc="lower right")
