"""What `foreserve simulate` shows in a terminal: a bar while it runs, then runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from foreserve.core import Outcome
from foreserve.plural import counted
from foreserve.simulation.comparison import differing
from foreserve.simulation.figures import Result
from foreserve.simulation.summary import Row, change, span, summary
from foreserve.simulation.survey import Survey
from foreserve.simulation.verdict import WARNING, against_live, notes
from foreserve.traces.row import Trace

T = TypeVar("T")

MOST_DIFFERENCES = 12

SHOW_EVERY = 512
"""Ended requests between two movements of the bar."""


class Bar:
    """A progress bar over the runs, and the watch that times them; it shows nothing when quiet or in a pipe."""

    def __init__(self, console: Console, quiet: bool) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True)
        self.seconds = 0.0
        """Real seconds of all runs so far."""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def reading(self, trace: Trace, read: Callable[[Trace, Callable[[int], None]], T]) -> T:
        """What `read` finds in a trace that may be long. It is given who wants to hear of rows."""
        name = f"reading {trace.header.name or 'the trace'}"
        task = self._progress.add_task(name, total=len(trace) or None, told="")
        try:
            return read(trace, lambda rows: self._progress.update(task, completed=rows, told=f"{rows:,} requests"))
        finally:
            self._progress.remove_task(task)

    def timed(self, name: str, rows: int, run: Callable[[Callable[[Outcome], None]], T]) -> T:
        """A run, which is given who wants to hear its outcomes."""
        task = self._progress.add_task(name, total=rows or None, told="")
        ended, began = 0, self._progress.get_time()

        def heard(outcome: Outcome) -> None:
            nonlocal ended
            ended += 1
            if ended % SHOW_EVERY == 0:
                rate = ended / max(self._progress.get_time() - began, 1e-9)
                told = f"{ended:,} requests, {span(outcome.ended)} simulated, {rate:,.0f}/s"
                self._progress.update(task, completed=min(ended, rows), told=told)

        result = run(heard)
        self.seconds += self._progress.get_time() - began
        self._progress.remove_task(task)
        return result


def show(console: Console, trace: Trace, seen: Survey, results: Sequence[Result], seconds: float) -> None:
    """Tables, what differs, notes and a last line. `seconds` is how long the runs took, really."""
    out = console if console.is_terminal else Console(file=console.file, width=160)
    names = list(results[0].services)
    shared = [name for name in names if all(name in result.services for result in results)]
    if len(names) == 1 or not shared:
        out.print(_table(_title(trace, seen), results, summary(results, seen.live), live=seen.live is not None))
    else:
        for name in shared:
            live = seen.live_for(name, only=False)
            out.print(_table(f"service {name}", results, summary(results, live, name), live=live is not None))
        out.print(_table(f"all of {_title(trace, seen)}", results, summary(results, seen.live), live=bool(seen.live)))
    if differences := differing(results):
        out.print(_differences(differences, results))
    for line, far in against_live(results, seen):
        out.print(line, style="bold yellow" if far else "green", markup=False, highlight=False)
    for note in notes(results):
        warns = note.startswith(WARNING)
        words, style = (note, "bold yellow") if warns else (f"note: {note}", "yellow")
        out.print(words, style=style, markup=False, highlight=False)
    out.print(last_line(results, seconds), markup=False, highlight=False)


def last_line(results: Sequence[Result], seconds: float) -> str:
    """How much was simulated, and how fast."""
    requests = sum(result.total.requests for result in results)
    simulated = sum(result.ended_s for result in results)
    rate = f", {requests / seconds:,.0f} requests/s, {simulated / seconds:,.0f} times real time" if seconds else ""
    runs = "" if len(results) == 1 else f" in {len(results)} runs"
    return f"simulated {counted(requests, 'request')} over {span(simulated)}{runs} in {seconds:.2f} s{rate}"


def _title(trace: Trace, seen: Survey) -> str:
    skipped = f", {seen.skipped:,} bad rows skipped" if seen.skipped else ""
    return f"{trace.header.name or 'trace'}: {counted(seen.rows, 'request')} in {span(seen.span_s)}{skipped}"


def _table(title: str, results: Sequence[Result], rows: Sequence[Row], *, live: bool) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for result in results:
        table.add_column(Text(result.name), justify="right", overflow="fold")
    if live:
        table.add_column("live", justify="right", style="cyan")
        table.add_column("against live" if len(results) == 1 else f"{results[0].name} against live", justify="right")
    group = rows[0].group if rows else ""
    for row in rows:
        if row.group != group:
            table.add_section()
            group = row.group
        cells = [_cell(row, at) for at in range(len(row.values))]
        table.add_row(Text(row.label), *cells, *([Text(row.live), Text(change(row.off))] if live else []))
    return table


def _cell(row: Row, at: int) -> Text:
    """The value, and beside it the difference to the first run: green where it is better."""
    if at == 0:
        return Text(row.values[0])
    value = row.changes[at]
    style = "dim"
    if value is not None and row.better is not None and abs(value) >= 0.01:
        style = "green" if (value < 0) == (row.better == "lower") else "red"
    return Text.assemble(row.values[at], (f"  {change(value):>7}", style))


def _differences(differences: dict[str, list[object]], results: Sequence[Result]) -> Table:
    table = Table(title="settings that differ", title_justify="left")
    table.add_column("")
    for result in results:
        table.add_column(Text(result.name), justify="right")
    for key, values in list(differences.items())[:MOST_DIFFERENCES]:
        table.add_row(Text(key), *(Text(msgspec.json.encode(value).decode()) for value in values))
    if len(differences) > MOST_DIFFERENCES:
        table.add_row(f"and {len(differences) - MOST_DIFFERENCES} more")
    return table
