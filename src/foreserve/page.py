"""One HTML page of tables and pictures that needs no network: plotly's script is in it, once, with the data."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any

import msgspec


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """One picture. `unit` is that of its y axis; `note` says in words what it lacks. `timed` ones zoom together.

    The logarithmic axis tells `seconds` in words, and has a line across at `mark`.
    """

    title: str
    says: str
    traces: list[dict[str, Any]]
    unit: str
    across: str = ""
    timed: bool = False
    log: str = ""
    stacked: bool = False
    legend: bool = False
    percent: str = ""
    note: str = ""
    seconds: bool = False
    mark: float | None = None


class Page:
    """Parts in order; `html` is the whole. Equal parts give equal pages."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.body: list[str] = [f"<h1>{text(title)}</h1>"]
        self._drawn: list[dict[str, object]] = []

    def grid(self, charts: Sequence[Chart], time: str) -> None:
        """Pictures side by side. `time`: the title of the x axis of those over time."""
        cards = "".join(self._card(chart, time) for chart in charts)
        self.body.append(f'<div class="grid">{cards}</div>')

    def _card(self, chart: Chart, time: str) -> str:
        name = f"chart{len(self._drawn)}"
        bars = any(trace["type"] == "bar" for trace in chart.traces)
        across = time if chart.timed else chart.across
        self._drawn.append({**msgspec.to_builtins(chart), "id": name, "bars": bars, "across": across})
        note = f'<p class="note">{text(chart.note)}</p>' if chart.note else ""
        return (
            f'<div class="card"><h3>{text(chart.title)}</h3><p class="says">{text(chart.says)}</p>'
            f'<div class="plot" id="{name}"></div>{note}</div>'
        )

    def html(self) -> str:
        """The page."""
        from plotly.offline import get_plotlyjs

        template = Template(resources.files("foreserve").joinpath("page.html").read_text(encoding="utf-8"))
        return template.substitute(
            title=text(self.title),
            plotly=get_plotlyjs(),
            body="\n".join(self.body),
            charts=_script(msgspec.json.encode(self._drawn)),
        )


def text(words: str) -> str:
    """Words as nothing but text."""
    return html.escape(words)


def _script(data: bytes) -> str:
    """JSON that may stand within a script: nothing in it ends one."""
    return data.decode().replace("<", "\\u003c")
