"""A trace in pictures: one HTML page that needs no network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from foreserve.errors import ConfigError
from foreserve.page import Chart, Page, text
from foreserve.plural import counted
from foreserve.traces.statistics import Series, Spread, Statistics

MOST_TENANTS: Final = 20

MOST_POINTS: Final = 240
"""Windows of a line: more cannot be told apart."""

COLOURS: Final = {
    "requests": "#3b6fb6",
    "input tokens": "#7a5195",
    "output tokens": "#ef7c3c",
    "until the first token": "#2a9d5c",
    "until the end": "#d1495b",
    "on a replica": "#8a8a8a",
}
"""By what is shown: the same everywhere on the page, so that one legend does for all."""


def plot(found: Statistics, path: Path) -> None:
    """Rate and tokens over time, lengths, tenants and, where they were recorded, latencies.

    Raises ConfigError when `path` cannot be written.
    """
    page = page_of(found)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def page_of(found: Statistics) -> str:
    """The page as HTML, with plotly's own script in it."""
    page = Page(f"{found.name or 'trace'}: {counted(found.requests, 'request')}")
    page.body.append(_table(found))
    unit, width = _unit(found.series)
    series, every = _coarser(found.series)
    middle = [(place + 0.5) * every / width for place in range(len(series["requests"]))]
    per = f"in windows of {every:g} s"

    def lines(*names: str) -> list[dict[str, Any]]:
        return [_line(middle, [value / every for value in series[name]], name) for name in names]

    charts = [
        Chart(title="Requests", says=f"As they came, {per}", traces=lines("requests"), unit="requests/s", timed=True),
        Chart(
            title="Tokens",
            says=f"Of the requests that came, {per}",
            traces=lines("input tokens", "output tokens"),
            unit="tokens/s",
            timed=True,
            legend=True,
        ),
    ]
    lengths = _steps({"input tokens": found.input_tokens, "output tokens": found.output_tokens})
    latencies = _steps(
        {"until the first token": found.first_s, "until the end": found.total_s, "on a replica": found.seconds}
    )
    for title, says, traces, across in (
        ("Lengths", "Share of requests with at most so many tokens", lengths, "tokens"),
        ("Latency as recorded", "Share of requests that took at most this long", latencies, "latency"),
    ):
        if traces:
            charts.append(
                Chart(
                    title=title,
                    says=says,
                    traces=traces,
                    unit="",
                    across=across,
                    log="x",
                    percent="y",
                    legend=True,
                    seconds=across == "latency",
                )
            )
    if found.tenants:
        tenants = list(found.tenants.items())[:MOST_TENANTS][::-1]
        bar = {
            "type": "bar",
            "orientation": "h",
            "y": [text(name) for name, _ in tenants],
            "x": [count for _, count in tenants],
            "marker": {"color": COLOURS["requests"]},
        }
        left = len(found.tenants) - MOST_TENANTS
        rest = f"{left} smaller ones are left out." if left > 0 else ""
        charts.append(
            Chart(title="Tenants", says="Requests of each", traces=[bar], unit="", across="requests", note=rest)
        )
    page.grid(charts, unit)
    return page.html()


def _line(x: list[float], y: list[float], name: str) -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": {"color": COLOURS[name]}}


def _coarser(series: Series) -> tuple[dict[str, list[float]], float]:
    """Its sums over so many bins at a time that at most `MOST_POINTS` windows are left, and their seconds."""
    sums = {
        "requests": series.requests,
        "input tokens": series.input_tokens,
        "output tokens": series.output_tokens,
    }
    step = max(1, math.ceil(len(series.requests) / MOST_POINTS))
    merged = {name: [sum(all_[at : at + step]) for at in range(0, len(all_), step)] for name, all_ in sums.items()}
    return merged, step * series.width_s


def _steps(spreads: dict[str, Spread | None]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, spread in spreads.items():
        points = [(value, share) for value, share in spread.cdf if value > 0] if spread is not None else []
        if spread is None or not points:  # the axis is logarithmic
            continue
        below = spread.cdf[0][1] if spread.cdf[0][0] <= 0 else 0.0
        x, y = [points[0][0], *(value for value, _ in points)], [below, *(share for _, share in points)]
        look = {"color": COLOURS[name], "shape": "hv"}
        found.append({"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": look})
    return found


def _table(found: Statistics) -> str:
    """The figures of everything that has a spread, and those of the whole."""
    facts = [
        ("requests a second", found.rate, "{:,.3g}"),
        ("burstiness (Poisson has 1)", found.gap_cv, "{:.2f}"),
        ("busiest minute, times the mean rate", found.peak_minute, "{:.2f}"),
        ("prefix blocks seen before", found.prefix_seen, "{:.1%}"),
    ]
    spreads = [
        ("input tokens", found.input_tokens, "{:,.0f}"),
        ("output tokens", found.output_tokens, "{:,.0f}"),
        ("seconds until the first token", found.first_s, "{:,.3f}"),
        ("seconds until the end", found.total_s, "{:,.3f}"),
        ("seconds on a replica", found.seconds, "{:,.3f}"),
    ]
    rows = ["<tr><th></th><th>requests</th><th>mean</th><th>p50</th><th>p90</th><th>p99</th><th>max</th></tr>"]
    for name, spread, told in spreads:
        if spread is not None:
            values = (spread.mean, spread.p50, spread.p90, spread.p99, spread.most)
            cells = "".join(f"<td>{told.format(value)}</td>" for value in values)
            rows.append(f"<tr><td>{name}</td><td>{spread.count:,}</td>{cells}</tr>")
    whole = "".join(
        f"<tr><td>{name}</td><td>{told.format(value)}</td></tr>" for name, value, told in facts if value is not None
    )
    return (
        f'<div class="card scroll"><table>{whole}</table><table>{"".join(rows)}</table></div><h2>Course and shapes</h2>'
    )


def _unit(series: Series) -> tuple[str, float]:
    """In what to tell the time of a trace, and how many seconds that is."""
    span = len(series.requests) * series.width_s
    for name, seconds in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if span >= 3 * seconds:
            return f"{name} since the start", seconds
    return "seconds since the start", 1.0
