"""What a picture of a report is made of: data that plotly.js draws, with words that say what it shows and lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from foreserve.page import Chart as Chart
from foreserve.simulation.figures import Series, ServiceFigures
from foreserve.simulation.histogram import Distribution

Runs = Sequence[tuple[str, ServiceFigures]]
"""One service in each run, with the runs' names."""

COLOURS: Final = ("#2563eb", "#c026d3", "#854d0e", "#0891b2", "#4c1d95", "#f472b6", "#64748b", "#1e3a8a")
"""Of the runs, in order; they begin anew after the last. None is one of `KINDS`."""

LIVE: Final = "#111827"
QUIET: Final = "#9ca3af"
KINDS: Final = {"done": "#10b981", "shed": "#f59e0b", "expired": "#ef4444", "cancelled": "#9ca3af", "failed": "#7f1d1d"}


def colour(index: int) -> str:
    """Of the run of this number."""
    return COLOURS[index % len(COLOURS)]


class Clock:
    """Where a window stands on the x axis: its time of day where the trace tells, else the time since its start."""

    def __init__(self, epoch: float, longest_s: float) -> None:
        self.dated = epoch > 0
        self._epoch = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=epoch)
        units = (
            (172_800.0, 86_400.0, "days"),
            (7200.0, 3600.0, "hours"),
            (300.0, 60.0, "minutes"),
            (0.0, 1.0, "seconds"),
        )
        self._unit_s, unit = next((s, name) for least, s, name in units if longest_s >= least)
        self.title = "time (UTC)" if self.dated else f"time since the start, {unit}"

    def places(self, width_s: float, n: int) -> list[Any]:
        """Of the first `n` windows, their middles."""
        middles = [(index + 0.5) * width_s for index in range(n)]
        if self.dated:
            return [(self._epoch + timedelta(seconds=at)).strftime("%Y-%m-%d %H:%M:%S.%f") for at in middles]
        return [short(at / self._unit_s) for at in middles]


def by_run(
    runs: Runs,
    clock: Clock,
    of: Callable[[Series], Sequence[float | None]],
    *,
    suffix: str = "",
    dash: str = "solid",
    shape: str = "linear",
) -> list[dict[str, Any]]:
    """A line of each run that has any value."""
    return [
        line(clock, each.series.width_s, of(each.series), f"{name}{suffix}", colour(at), dash=dash, shape=shape)
        for at, (name, each) in enumerate(runs)
        if any(value is not None for value in of(each.series))
    ]


def line(
    clock: Clock,
    width_s: float,
    values: Sequence[float | None],
    name: str,
    tint: str,
    *,
    dash: str = "solid",
    shape: str = "linear",
    fill: bool = False,
) -> dict[str, Any]:
    """Values of one window after the other; gaps where there is none."""
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": clock.places(width_s, len(values)),
        "y": [None if value is None else short(value) for value in values],
        "line": {"color": tint, "width": 1.8 if dash == "solid" else 1.4, "dash": dash, "shape": shape},
    }
    return {**trace, "fill": "tozeroy", "fillcolor": f"{tint}22"} if fill else trace


def steps(told: Distribution, name: str, tint: str, dash: str = "solid") -> dict[str, Any]:
    """A cumulative distribution."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [short(max(value, 1e-4)) for value, _ in told.curve],
        "y": [short(share) for _, share in told.curve],
        "line": {"color": tint, "width": 1.8, "dash": dash, "shape": "hv"},
    }


def share(part: int, whole: int) -> float:
    """A part of a whole, 0 of nothing."""
    return part / whole if whole else 0.0


def short(value: float) -> float:
    """With as many digits as can be seen."""
    return float(f"{value:.5g}")


def seconds(width_s: float) -> str:
    """A window's width in words."""
    return f"{width_s:g} s" if width_s < 120 else f"{width_s / 60:g} min"
