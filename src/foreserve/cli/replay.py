"""`foreserve replay`: recorded decisions made once more, by the same policies or by others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from foreserve.cli.ending import wrong
from foreserve.errors import ConfigError

if TYPE_CHECKING:
    from foreserve.simulation.replay import Replayed

EXIT_DIFFERS = 1
"""A decision is another than it was."""


def replay_(
    recording: Annotated[
        Path, typer.Argument(metavar="FILE", help="What `state.decisions` or --record-decisions has written.")
    ],
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another batch policy: how many decisions would differ?")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="Another option of the policy: aging=2.0. May be repeated."),
    ] = None,
    placement: Annotated[str | None, typer.Option(metavar="NAME", help="Another placement.")] = None,
    admission: Annotated[str | None, typer.Option(metavar="NAME", help="Another admission.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no table.")] = False,
) -> None:
    """Feed the recorded calls to the policies that made them, and compare every decision.

    Exit status: 0 when all are the same; 1 when some differ, the first of which is shown with its inputs; 2 when the
    file is no recording. With another policy, placement or admission the exit status is 0: it tells how many differ.
    """
    from foreserve.simulation.replay import Instead, replay

    console = Console()
    instead = Instead(policy=policy, options=_options(set_ or []), placement=placement, admission=admission)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
            size = recording.stat().st_size if recording.is_file() else None
            task = bar.add_task(recording.name, total=size)
            found = replay(recording, instead, heard=lambda read: bar.advance(task, read))
    except ConfigError as error:
        wrong(str(error))
    others = instead != Instead()
    if not quiet:
        _show(console, found, others)
    if found.first is not None and not others:
        raise typer.Exit(EXIT_DIFFERS)


def _show(console: Console, found: Replayed, others: bool) -> None:
    def line(words: str) -> None:
        console.print(words, soft_wrap=True, highlight=False, markup=False)

    table = Table(box=None, pad_edge=False)
    for name in ("decisions", "the same", "others"):
        table.add_column(name, justify="left" if name == "decisions" else "right")
    for kind in sorted({*found.agreed, *found.differed}):
        table.add_row(kind, f"{found.agreed[kind]:,}", f"{found.differed[kind]:,}")
    console.print(table)
    total, differed = found.agreed.total() + found.differed.total(), found.differed.total()
    if not found.whole:
        why = found.ended or "it was cut off: its server was killed or still runs, or the disk failed"
        line(f"the recording is not whole; it ends after {found.calls:,} calls, because {why}")
    if not differed:
        line(f"all {total:,} decisions {'' if found.whole else 'in it '}are the same")
        return
    line(f"{differed:,} of {total:,} decisions {'would have been' if others else 'are'} others")
    first = found.first
    if first is not None:
        line(f"the first is in line {first.line}:")
        line(f"  recorded {_words(first.recorded)}")
        line(f"  now      {_words(first.now)}")


def _words(asked: Any) -> str:
    from foreserve.dispatch.decisions import encoded

    return encoded(asked).decode()


def _options(assignments: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for each in assignments:
        name, equals, value = each.partition("=")
        if not equals or not name.strip():
            wrong(f"--set {each!r} is no OPTION=VALUE, such as aging=2.0")
        options[name.strip()] = yaml.safe_load(value)
    return options
