"""The timeline of one request of a pipeline: as plain facts, as a Chrome trace, and as a page."""

from __future__ import annotations

from typing import Any

from foreserve.page import Chart, Page, text
from foreserve.pipelines.events import path_of
from foreserve.pipelines.timeline import Span, Timeline


def as_facts(timeline: Timeline) -> dict[str, Any]:
    """Each call with its place in the streams it belongs to; times in seconds since the request came."""
    spans = [
        {
            "stage": span.name,
            "place": list(path_of(span.ancestry)),
            "began_s": round(span.began - timeline.arrival, 6),
            "took_s": round(span.seconds, 6),
            "ended": span.how or None,
            **({"facts": span.facts} if span.facts else {}),
        }
        for span in timeline.spans
    ]
    return {"id": timeline.request, "pipeline": timeline.pipeline, "spans": spans, "left_out": timeline.left_out}


def as_trace(timeline: Timeline) -> dict[str, Any]:
    """For https://ui.perfetto.dev: a row for each stage and place in its stream; times in microseconds of arrival."""
    events: list[dict[str, Any]] = []
    rows: dict[tuple[str, str], int] = {}
    for span in timeline.spans:
        row = rows.setdefault((span.name, _place(span)), len(rows) + 1)
        began = span.began - timeline.arrival
        events.append(
            {
                "ph": "X",
                "name": _label(span),
                "cat": span.how or "running",
                "pid": 1,
                "tid": row,
                "ts": round(began * 1e6),
                "dur": round(span.seconds * 1e6),
                "args": {"ancestry": [list(level) for level in span.ancestry], "how": span.how, **span.facts},
            }
        )
    named = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": row, "args": {"name": f"{name} {place}".strip()}}
        for (name, place), row in rows.items()
    ]
    process = {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": f"{timeline.pipeline} {timeline.request}"}}
    return {"displayTimeUnit": "ms", "traceEvents": [process, *named, *events]}


def as_page(timeline: Timeline) -> str:
    """A page that needs no network: a bar for each call of a stage, deeper ones further down, and a table."""
    page = Page(f"{timeline.pipeline}: request {timeline.request}")
    left_out = f" {timeline.left_out} more are left out." if timeline.left_out else ""
    page.body.append(
        f"<p>{len(timeline.spans)} calls of stages.{left_out} Times are seconds since the request came.</p>"
    )
    page.grid([_chart(timeline)], "seconds since arrival")
    page.body.append(_table(timeline))
    return page.html()


def _chart(timeline: Timeline) -> Chart:
    stages = list(dict.fromkeys(span.name for span in timeline.spans))
    traces = []
    for stage in stages:
        spans = [span for span in timeline.spans if span.name == stage]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": stage,
                "y": [_label(span) for span in spans],
                "base": [span.began - timeline.arrival for span in spans],
                "x": [span.seconds for span in spans],
            }
        )
    return Chart(
        title="Who worked when",
        says="A bar for each call, from its beginning to its end.",
        traces=traces,
        unit="",
        across="seconds since arrival",
        legend=True,
    )


def _table(timeline: Timeline) -> str:
    rows = []
    for span in timeline.spans:
        facts = ", ".join(f"{name} {_short(fact)}" for name, fact in span.facts.items())
        cells = (
            span.name,
            _place(span),
            f"{span.began - timeline.arrival:.3f}",
            f"{span.seconds:.3f}",
            span.how,
            facts,
        )
        rows.append("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("stage", "place", "began (s)", "took (s)", "ended", "served by"))
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _place(span: Span) -> str:
    return "/".join(str(number) for number in path_of(span.ancestry))


def _label(span: Span) -> str:
    return f"{span.name} {_place(span)}".strip()


def _short(fact: Any) -> str:
    return f"{fact:.3g}" if isinstance(fact, float) else str(fact)
