"""Runs as one HTML page that needs no network: plotly's script is in it, once, with the data."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from foreserve.page import Page
from foreserve.page import text as _text
from foreserve.plural import counted
from foreserve.simulation.chart import LIVE, Clock, colour
from foreserve.simulation.charts import charts
from foreserve.simulation.comparison import differing
from foreserve.simulation.figures import Result
from foreserve.simulation.summary import Row, change, span, summary
from foreserve.simulation.survey import Survey
from foreserve.simulation.verdict import WARNING, against_live, notes
from foreserve.traces.row import Trace


def page(trace: Trace, seen: Survey, results: Sequence[Result]) -> str:
    """The page. Equal runs give equal pages."""
    made = Page(f"Simulation of {trace.header.name or 'a trace'}")
    body = made.body
    body += [
        f'<p class="quiet">{_text(_about(seen, results))}</p>',
        _legend(results, live=seen.live is not None),
        *_notes(seen, results),
        _differences(results),
    ]
    names = [name for name in results[0].services if all(name in result.services for result in results)]
    several = len(names) > 1
    if several or not names:
        body += ["<h2>All services</h2>", _table(results, summary(results, seen.live), live=seen.live is not None)]
    for name in names:
        live = seen.live_for(name, only=not several)
        rows = summary(results, live, name)
        body += [f"<h2>Service {_text(name)}</h2>", _table(results, rows, live=live is not None)]
        clock = Clock(results[0].epoch, max(result.ended_s for result in results))
        body.append(f"<h2>{_text(name)}: its course</h2>")
        made.grid(charts(results, name, live, _deadline(seen, results, name)), clock.title)
    return made.html()


def _deadline(seen: Survey, results: Sequence[Result], service: str) -> float | None:
    """That all requests have: the rows' own, or the settings' where rows have none. `None`: there is no such one."""
    if len(seen.deadlines) != 1:
        return None
    if (own := seen.deadlines[0]) is not None:
        return own
    asked = {result.settings[service].get("deadline_s") for result in results}
    return asked.pop() if len(asked) == 1 else None


def _about(seen: Survey, results: Sequence[Result]) -> str:
    skipped = f" ({seen.skipped:,} bad rows skipped)" if seen.skipped else ""
    return (
        f"{counted(seen.rows, 'request')}{skipped} in {span(seen.span_s)}, seed {results[0].seed}. Made by foreserve "
        "simulate: the app's own dispatcher, policies and ledger on a virtual clock, with simulated engines."
    )


def _legend(results: Sequence[Result], *, live: bool) -> str:
    runs = [
        f'<span><i style="border-color:{colour(at)}"></i>{_text(result.name)}</span>'
        for at, result in enumerate(results)
    ]
    if live:
        runs.append(f'<span><i class="live" style="border-color:{LIVE}"></i>live, as recorded</span>')
    return f'<div class="legend">{"".join(runs)}</div>'


def _notes(seen: Survey, results: Sequence[Result]) -> list[str]:
    told = [
        f'<p class="{"note far" if far else "says"}">{_text(line)}</p>' for line, far in against_live(results, seen)
    ]
    told += [
        f'<p class="{"note far" if note.startswith(WARNING) else "note"}">{_text(note)}</p>' for note in notes(results)
    ]
    if seen.live is None:
        words = "The trace does not tell how its requests went live, so nothing live stands beside the simulation."
        told.append(f'<p class="says">{words}</p>')
    return told


def _differences(results: Sequence[Result]) -> str:
    found = differing(results)
    if len(results) == 1:
        return ""
    if not found:
        return '<p class="note">The runs do not differ in any setting.</p>'
    head = "".join(f"<th>{_text(result.name)}</th>" for result in results)
    rows = "".join(
        f"<tr><td><code>{_text(key)}</code></td>"
        + "".join(f"<td><code>{_text(msgspec.json.encode(value).decode())}</code></td>" for value in values)
        + "</tr>"
        for key, values in found.items()
    )
    return f'<h2>Settings that differ</h2><div class="card scroll"><table><tr><th></th>{head}</tr>{rows}</table></div>'


def _table(results: Sequence[Result], rows: Sequence[Row], *, live: bool) -> str:
    head = "".join(f"<th>{_text(result.name)}</th>" for result in results) + (
        "<th>live</th><th>against live</th>" if live else ""
    )
    lines: list[str] = []
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            lines.append(
                f'<tr class="group"><td colspan="{len(results) + 1 + 2 * live}">{_text(group.capitalize())}</td></tr>'
            )
        cells = "".join(f"<td>{_cell(row, at)}</td>" for at in range(len(row.values)))
        beside = f"<td>{_text(row.live)}</td><td>{_text(change(row.off))}</td>" if live else ""
        lines.append(f"<tr><td>{_text(row.label.strip())}</td>{cells}{beside}</tr>")
    return f'<div class="card scroll"><table><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'


def _cell(row: Row, at: int) -> str:
    value = row.changes[at]
    if at == 0:
        return _text(row.values[0])
    kind = ""
    if value is not None and row.better is not None and abs(value) >= 0.01:
        kind = ' class="good"' if (value < 0) == (row.better == "lower") else ' class="bad"'
    return f"{_text(row.values[at])}<small{kind}>{_text(change(value))}</small>"
