"""What the scaling benchmark shows: a table of every service and way, replicas over time, and late against paid for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from rich.table import Table

from benchmarks.scaling_runs import TARGET, Ran
from benchmarks.scaling_traces import SPEED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: Final = {
    "static": "#6b7280",
    "reactive": "#ef4444",
    "forecast": "#10b981",
    "hybrid": "#2563eb",
}
DRAWN: Final = ("static", "reactive", "hybrid")
"""Ways whose course is drawn; more would hide each other."""

DAYS: Final = 3.0


def table(by_service: Mapping[str, Sequence[Ran]]) -> Table:
    """A row for each service and way."""
    made = Table(title="every service", title_justify="left")
    for name in ("service", "way"):
        made.add_column(name)
    for name in ("hours", "mean", "in time", "p99 s/token", "p99 TTFT", "starts"):
        made.add_column(name, justify="right")
    for service, every in by_service.items():
        for at, ran in enumerate(every):
            hours = len(ran.paid) * ran.width_s / 3600.0
            made.add_row(
                "" if at else service,
                f"{ran.way.name} {ran.way.replicas}" if ran.way.name == "static" else ran.way.name,
                f"{ran.replica_hours:.1f}",
                f"{ran.replica_hours / hours:.2f}",
                f"{100 * ran.attained:.2f} %",
                _p99(ran.normalised, 3),
                _p99(ran.ttft, 2, " s"),
                str(ran.starts),
                end_section=at == len(every) - 1,
            )
    return made


def _p99(values: Sequence[float], digits: int, unit: str = "") -> str:
    """In words where so many were never done: between a number and infinity nothing can be interpolated."""
    found = float(np.quantile(values, 0.99, method="higher"))
    return f"{found:.{digits}f}{unit}" if np.isfinite(found) else "never"


def draw(axes: Sequence[Axes], by_service: Mapping[str, Sequence[Ran]]) -> None:
    """The course of two services for some days, and what each way costs and misses."""
    names = list(by_service)
    for axis, service in zip(axes[:2], (names[min(1, len(names) - 1)], names[-1]), strict=True):
        _course(axis, service, by_service[service])
    _prices(axes[2], by_service)


def _course(axis: Axes, service: str, every: Sequence[Ran]) -> None:
    first = every[0]
    shown = int(DAYS * 86_400.0 / SPEED / first.width_s)
    days = np.arange(len(first.need[:shown])) * first.width_s * SPEED / 86_400.0
    axis.fill_between(days, first.need[:shown], color="#d1d5db", label="load at full batches")
    for ran in every:
        if ran.way.name in DRAWN:
            paid = ran.paid[:shown]
            axis.step(
                days[: len(paid)], paid, where="post", color=COLOURS[ran.way.name], label=ran.way.name, linewidth=1.2
            )
    axis.set(title=service, xlabel="days of the trace", ylabel="replicas")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)


def _prices(axis: Axes, by_service: Mapping[str, Sequence[Ran]]) -> None:
    """Each service and way by what it costs against the fixed number, and what it misses."""
    for service, every in by_service.items():
        whole = every[0].replica_hours
        for ran in every:
            late = max(100.0 * (1.0 - ran.attained), 1e-3)
            marker = "o" if service.startswith("client") else "s"
            axis.scatter(ran.replica_hours / whole, late, color=COLOURS[ran.way.name], marker=marker, alpha=0.8)
    for name, colour in COLOURS.items():
        axis.scatter([], [], color=colour, label=name)
    axis.axhline(100.0 * (1.0 - TARGET), color="#111827", linewidth=0.8, linestyle="--")
    axis.set(
        title="each service; squares: the whole model",
        xlabel="replica-hours against the fixed number",
        ylabel="missed the objective, %",
        yscale="log",
    )
    axis.set_xlim(left=0)
    axis.legend(fontsize=8)
