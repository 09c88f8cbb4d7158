"""`foreserve simulate --faults … --seeds N`: many seeds one after the other, each that fails told at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from foreserve.plural import counted

if TYPE_CHECKING:
    from foreserve.simulation.sweep import Summary, Swept

SHOWN = 3
"""Findings of one seed that are printed."""


def run_sweep(
    console: Console,
    one: Callable[[int], Swept],
    seeds: Sequence[int],
    command: Callable[[int], str],
    *,
    jobs: int = 1,
    quiet: bool = False,
    figures: bool = False,
) -> Summary:
    """Run `one` for every seed and print those that fail, with the `command` that runs that seed again.

    With `figures` the seeds are of one app and load, whose median and worst are told.

    Returns the summary, which it prints unless `quiet`; `failed` there is how many seeds did.
    """
    from foreserve.simulation import sweep as sweeping

    summary = sweeping.Summary()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task("seeds", total=len(seeds), told="")
        for found in sweeping.sweep(one, seeds, jobs=jobs):
            summary.add(found)
            if found.findings:
                _tell(console, found, command(found.seed))
            told = f"{summary.requests:,} requests" + (f", {summary.failed} failed" if summary.failed else "")
            bar.update(task, advance=1, told=told)
    if not quiet:
        _summarise(console, summary)
        if figures:
            _spread(console, summary, command)
    return summary


def _spread(console: Console, summary: Summary, command: Callable[[int], str]) -> None:
    """Figures over the seeds: the median, and the worst with the command that shows it again."""
    from foreserve.simulation.summary import duration, percent

    for what, told, values, worst in (
        ("done", percent, summary.done, min),
        ("TTFT p99", duration, summary.ttft_p99, max),
    ):
        if values:
            value, seed = worst(values)
            middle = told(median(each for each, _ in values))
            console.print(f"{what}: median {middle}, worst {told(value)} (seed {seed})", highlight=False)
            console.print(f"  again: {command(seed)}", soft_wrap=True, highlight=False, markup=False)


def _tell(console: Console, found: Swept, command: str) -> None:
    def line(words: str, style: str | None = None) -> None:
        console.print(words, style=style, soft_wrap=True, highlight=False, markup=False)

    line(f"seed {found.seed}: {counted(len(found.findings), 'finding')}", "red")
    for finding in found.findings[:SHOWN]:
        line(f"  {finding.check} at {finding.at:.3f} s: {finding.words}")
    line(f"  again: {command}")


def _summarise(console: Console, summary: Summary) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("", justify="right")
    for name, count in summary.outcomes.most_common():
        table.add_row(name, f"{count:,}", f"{count / max(summary.requests, 1):.1%}")
    for name, count in summary.happened.most_common():
        table.add_row(name, counted(count, "time"), f"in {counted(summary.with_fault[name], 'seed')}")
    console.print(table)
    words = f"{counted(summary.seeds, 'seed')}, {counted(summary.requests, 'request')}: "
    if not summary.failed:
        console.print(f"{words}all checks hold", highlight=False)
        return
    checks = ", ".join(f"{check} in {count}" for check, count in summary.findings.most_common())
    console.print(f"{words}{counted(summary.failed, 'seed')} failed ({checks})", style="red", highlight=False)
