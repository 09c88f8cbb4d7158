"""A trace in pictures: one HTML page that needs no network."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any, Final

from foreserve.errors import ConfigError
from foreserve.traces.statistics import Series, Spread, Statistics

MOST_TENANTS: Final = 20

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
    from plotly.graph_objects import Bar, Figure, Scatter
    from plotly.io import to_html
    from plotly.subplots import make_subplots

    latencies = {"until the first token": found.first_s, "until the end": found.total_s, "on a replica": found.seconds}
    with_latency = any(latencies.values())
    titles = ["Requests a second", "Tokens a second", "Lengths: share of requests up to", "Tenants"]
    if with_latency:
        titles.append("Latency as recorded: share of requests up to")
    rows = (len(titles) + 1) // 2
    figure: Figure = make_subplots(rows=rows, cols=2, subplot_titles=titles, vertical_spacing=0.3 / rows)
    unit, width = _unit(found.series)
    middle = [(place + 0.5) * found.series.width_s / width for place in range(len(found.series.requests))]

    def line(values: list[float], name: str, column: int) -> None:
        per_second = [value / found.series.width_s for value in values]
        look = {"name": name, "mode": "lines", "line": {"color": COLOURS[name]}}
        figure.add_trace(Scatter(x=middle, y=per_second, **look), row=1, col=column)

    line(found.series.requests, "requests", 1)
    line(found.series.input_tokens, "input tokens", 2)
    line(found.series.output_tokens, "output tokens", 2)
    for column in (1, 2):
        figure.update_xaxes(title_text=unit, row=1, col=column)
        figure.update_yaxes(rangemode="tozero", row=1, col=column)
    _steps(figure, Scatter, {"input tokens": found.input_tokens, "output tokens": found.output_tokens}, 2, 1)
    figure.update_xaxes(title_text="tokens", type="log", row=2, col=1)
    tenants = list(found.tenants.items())[:MOST_TENANTS]
    names = [escape(name) for name, _ in tenants]
    counts = [count for _, count in tenants]
    figure.add_trace(Bar(x=names, y=counts, marker={"color": COLOURS["requests"]}, showlegend=False), row=2, col=2)
    figure.update_xaxes(type="category", row=2, col=2)
    if with_latency:
        _steps(figure, Scatter, latencies, 3, 1)
        figure.update_xaxes(title_text="seconds", type="log", row=3, col=1)
    figure.update_layout(
        title={"text": f"{escape(found.name) or 'trace'}: {found.requests:,} requests"},
        template="plotly_white",
        height=120 + 360 * rows,
        margin={"l": 60, "r": 30, "t": 90, "b": 60},
    )
    page: str = to_html(figure, include_plotlyjs=True, full_html=True, config={"displaylogo": False})
    return page


def _steps(figure: Any, scatter: Any, spreads: dict[str, Spread | None], row: int, column: int) -> None:
    for name, spread in spreads.items():
        if spread is None:
            continue
        points = [(value, share) for value, share in spread.cdf if value > 0]  # the axis is logarithmic
        if not points:
            continue
        below = spread.cdf[0][1] if spread.cdf[0][0] <= 0 else 0.0
        x, y = [points[0][0], *(value for value, _ in points)], [below, *(share for _, share in points)]
        look = {"name": name, "mode": "lines", "line": {"shape": "hv", "color": COLOURS[name]}}
        figure.add_trace(scatter(x=x, y=y, showlegend="tokens" not in name, **look), row=row, col=column)
    figure.update_yaxes(range=[0, 1.02], row=row, col=column)


def _unit(series: Series) -> tuple[str, float]:
    """In what to tell the time of a trace, and how many seconds that is."""
    span = len(series.requests) * series.width_s
    for name, seconds in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if span >= 3 * seconds:
            return f"{name} since the start", seconds
    return "seconds since the start", 1.0
