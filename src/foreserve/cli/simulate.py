"""`foreserve simulate`: what a trace would have cost and how it would have gone, before anything is deployed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import msgspec
import typer
from rich.console import Console

from foreserve.errors import ConfigError

if TYPE_CHECKING:
    from foreserve.cli.simulate_table import Bar
    from foreserve.core import Outcome
    from foreserve.simulation.comparison import Variant
    from foreserve.simulation.figures import Result
    from foreserve.simulation.survey import Survey
    from foreserve.traces.row import Trace, TraceRow

EXIT_WRONG = 2
"""An option, the app, a profile or the trace is wrong."""

_TRACE, _RUNS, _OUT = "Trace", "Runs", "Output"


def simulate(
    trace: Annotated[list[str], typer.Argument(metavar="TRACE", help="A trace; docs/traces.md has the formats.")],
    app: Annotated[
        str, typer.Option(metavar="APP", help="The app file: app.py, app.py:name or app.yaml.", rich_help_panel=_RUNS)
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Another value of a setting, in the app file's words: services.chat.replicas=4, chat.policy=fcfs.",
            rich_help_panel=_RUNS,
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE...",
            help="Further runs: YAML with other settings, or whole app files. They share the trace and the seed.",
            rich_help_panel=_RUNS,
        ),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SERVICE=FILE",
            help="The engine's profile. [default: what foreserve calibrate has measured]",
            rich_help_panel=_RUNS,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.", rich_help_panel=_RUNS)] = 0,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML report that needs no network.", rich_help_panel=_OUT)
    ] = None,
    json: Annotated[
        str | None, typer.Option(help="Write the figures as JSON to a file, or to - (stdout).", rich_help_panel=_OUT)
    ] = None,
    quiet: Annotated[bool, typer.Option(help="No progress bar and no table.", rich_help_panel=_OUT)] = False,
) -> None:
    """Play a trace to an app on a virtual clock: the same dispatcher, policies and ledger, with simulated engines.

    Prints latency, goodput, utilisation and outcomes; docs/simulation.md tells what is modelled. Exit status: 0, or 2
    when anything given is wrong; nothing runs then. Examples: `foreserve simulate monday.jsonl --app app.py`,
    `foreserve simulate monday.jsonl --app app.py --set chat.replicas=3 --compare fcfs.yaml six.yaml`.
    """
    from foreserve.appfile import load_app_file
    from foreserve.cli.bench_options import check_writable
    from foreserve.cli.simulate_table import Bar, show
    from foreserve.simulation.comparison import check, variants
    from foreserve.simulation.report import page
    from foreserve.simulation.survey import survey
    from foreserve.simulation.variants import assignments

    console = Console(stderr=json == "-")
    try:
        for where in (None if json in (None, "-") else Path(str(json)), report):
            check_writable(where)
        if len(trace) > 1 and not compare:
            raise ConfigError(f"one TRACE is played at a time, not {trace[1]} too; runs are compared by --compare")
        files = [*(compare or []), *trace[1:]]
        runs = variants(load_app_file(app), Path(app).name, assignments(set_ or []), files, profile or [])
        opened = _open(trace[0])
        with Bar(console, quiet) as bar:
            seen = bar.reading(trace[0], lambda: survey(opened))
            if not seen.rows:
                raise ConfigError(f"{trace[0]}: there is no request in it")
            for each in runs:
                check(each, seen)
            results = [_run(each, opened, seen, seed, bar) for each in runs]
    except ConfigError as error:
        _wrong(str(error))
    if not quiet:
        show(console, opened, seen, results, bar.seconds)
    if report is not None:
        report.write_text(page(opened, seen, results), encoding="utf-8")
    if json is not None:
        _write(json, _document(opened, seen, seed, results))


def _run(run: Variant, trace: Trace, seen: Survey, seed: int, bar: Bar) -> Result:
    from foreserve.simulation.study import simulate as play

    def played(heard: Callable[[Outcome], None]) -> Result:
        return play(
            run.app, run.profiles, trace, seed=seed, observers=[heard], surveyed=seen, name=run.name, notes=run.notes
        )

    return bar.timed(run.name, seen.rows, played)


def _document(trace: Trace, seen: Survey, seed: int, results: list[Result]) -> bytes:
    """The same for the same command: it has no real times in it."""
    document = {
        "tool": "foreserve simulate",
        "trace": {"name": trace.header.name, "epoch": trace.header.epoch, **msgspec.to_builtins(seen)},
        "seed": seed,
        "runs": results,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


class _Jsonl:
    def __init__(self, path: str) -> None:
        from foreserve.traces.row import Header

        self.path = path
        self.skipped = 0
        self.header = Header(name=Path(path).name)

    def __iter__(self) -> Iterator[TraceRow]:
        from foreserve.traces.row import TraceRow

        with open(self.path, "rb") as file:
            for line in file:
                if b"foreserve_trace" not in line:
                    yield msgspec.json.decode(line, type=TraceRow)

    def __len__(self) -> int:
        return 0


def _open(path: str) -> Trace:
    return _Jsonl(path)


def _write(where: str, document: bytes) -> None:
    if where == "-":
        sys.stdout.write(document.decode())
    else:
        Path(where).write_bytes(document)


def _wrong(words: str) -> NoReturn:
    Console(stderr=True).print(
        f"foreserve simulate: {words}", style="red", markup=False, highlight=False, soft_wrap=True
    )
    raise typer.Exit(EXIT_WRONG)
