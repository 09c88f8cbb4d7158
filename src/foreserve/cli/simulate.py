"""`foreserve simulate`: what a trace would have cost and how it would have gone, before anything is deployed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from foreserve.cli import trace_words as words
from foreserve.cli.bench_options import check_writable
from foreserve.errors import ConfigError, ForeserveError

EXIT_FAILED = 1
"""A check did not hold under some seed of faults, or a simulation could not be ended as it should."""

EXIT_WRONG = 2
"""An option, the app, a profile or the trace is wrong."""

EXIT_STOPPED = 130
"""Ctrl-C."""

_RUNS, _FAULTS, _OUT = "Runs", "Faults", "Output"


def simulate(
    trace: Annotated[
        list[str] | None,
        typer.Argument(metavar="TRACE", help="The trace, in any format of docs/traces.md, perhaps .xz or .gz."),
    ] = None,
    app: Annotated[
        str | None,
        typer.Option(metavar="APP", help="The app file: app.py, app.py:name or app.yaml.", rich_help_panel=_RUNS),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Another value of a setting, in the app file's words: services.chat.replicas=4, chat.policy=fcfs. "
            "May be repeated.",
            rich_help_panel=_RUNS,
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE...",
            help="Further runs beside the app's: YAML with other settings, or whole app files.",
            rich_help_panel=_RUNS,
        ),
    ] = None,
    vary: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=V1,V2,...",
            help="A run for each value of a setting, in place of the app's own: chat.replicas=1,2,4.",
            rich_help_panel=_RUNS,
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Of a replica-hour, in any currency: tells what each run costs.", rich_help_panel=_RUNS
        ),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SERVICE=FILE",
            help="A service's engine profile. May be repeated. Default: what foreserve calibrate measured.",
            rich_help_panel=_RUNS,
        ),
    ] = None,
    faults: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help="What goes wrong: worker_death,load_spike:times=5, or mixed; docs/faults.md has them all.",
            rich_help_panel=_FAULTS,
        ),
    ] = None,
    fault_seed: Annotated[
        int | None,
        typer.Option(help="Seed of the faults, the first of --seeds. Default: --seed.", rich_help_panel=_FAULTS),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="So many seeds of faults in turn, with every check; each that fails is told with its command. "
            "Without TRACE and --app each draws an app, an engine and a load of its own.",
            rich_help_panel=_FAULTS,
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="With --seeds: processes side by side.", rich_help_panel=_FAULTS)
    ] = 1,
    report: Annotated[
        Path | None, typer.Option(metavar="HTML", help="Write a report that opens offline.", rich_help_panel=_OUT)
    ] = None,
    timeline: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="Write a Chrome trace for ui.perfetto.dev; of several runs each gets a file.",
            rich_help_panel=_OUT,
        ),
    ] = None,
    timeline_requests: Annotated[
        int, typer.Option(min=1, help="Requests in the timeline: the first that end.", rich_help_panel=_OUT)
    ] = 20_000,
    json: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Write the figures as JSON to a file, or to - (stdout).", rich_help_panel=_OUT
        ),
    ] = None,
    record_decisions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Record every decision, for foreserve replay; of several runs each gets a file.",
            rich_help_panel=_OUT,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no table.", rich_help_panel=_OUT)] = False,
    format: words.Format = "auto",
    skip_bad: words.SkipBad = False,
    sort: words.Sort = False,
    per_second: words.PerSecond = None,
    start: words.From = "0",
    end: words.To = None,
    rate: words.Rate = 1.0,
    speed: words.Speed = 1.0,
    limit: words.Limit = None,
    seed: words.Seed = 0,
    service: words.Service = None,
    map_: words.Map = None,
) -> None:
    """Play a trace to an app on a virtual clock: its own dispatcher, policies and ledger, with simulated engines.

    Prints latency, goodput, utilisation and outcomes; docs/simulation.md tells what is modelled. Exit status: 0; 2 when
    anything given is wrong, and nothing has run then; with --seeds 1 when a check failed.

    Examples: `foreserve simulate monday.jsonl --app app.py`, `foreserve simulate monday.jsonl --app app.py
    --set chat.replicas=3 --compare fcfs.yaml six.yaml --report out.html`, `foreserve simulate --faults mixed
    --seeds 1000`.
    """
    from foreserve.appfile import load_app_file
    from foreserve.cli.simulate_runs import Outputs, play
    from foreserve.cli.simulate_sweep import Asked, sweep, sweep_random
    from foreserve.simulation.comparison import variants
    from foreserve.simulation.variants import assignments, varied

    # Replicas are lost and lengths learned by the thousand; what is wrong with the house itself is an error.
    logging.basicConfig(level=logging.ERROR)
    console = Console(stderr=json == "-")
    try:
        for where in (None if json == "-" else json, report, timeline, record_decisions):
            check_writable(where)
        first = seed if fault_seed is None else fault_seed
        if trace is None or app is None:
            if trace or app or faults is None or seeds is None:
                raise ConfigError("TRACE and --app are missing; only --faults WORDS --seeds N goes without both")
            failed = sweep_random(console, faults, range(first, first + seeds), jobs=jobs, quiet=quiet)
            raise typer.Exit(EXIT_FAILED if failed else 0)
        if len(trace) > 1 and not compare:
            raise ConfigError(f"one TRACE is played at a time, not {trace[1]} too; runs are compared by --compare")
        reading = (format, skip_bad, sort, per_second, start, end, rate, speed, limit)
        if seeds is not None:
            alone = (compare, vary, price, report, timeline, json, record_decisions)
            if faults is None or any(each is not None for each in alone):
                raise ConfigError(
                    "--seeds goes with --faults, and with no --compare, --vary, --price, --report, --timeline, --json "
                    "or --record-decisions"
                )
            asked = Asked(
                app=app,
                sets=tuple(set_ or ()),
                profiles=tuple(profile or ()),
                trace=trace[0],
                reading=reading,
                seed=seed,
                faults=faults,
                service=service,
                maps=tuple(map_ or ()),
            )
            failed = sweep(console, asked, range(first, first + seeds), jobs=jobs, quiet=quiet)
            raise typer.Exit(EXIT_FAILED if failed else 0)
        files = [*(compare or []), *trace[1:]]
        values = None if vary is None else varied(vary)
        runs = variants(load_app_file(app), Path(app).name, assignments(set_ or []), files, profile or [], values)
        read = words.read(Path(trace[0]), *reading, seed, service, map_ or ())
        outputs = Outputs(report, timeline, timeline_requests, json, record_decisions)
        play(console, read, runs, seed, outputs, quiet=quiet, faults=faults, fault_seed=first, price=price)
    except ForeserveError as error:
        _wrong(str(error), EXIT_WRONG if isinstance(error, ConfigError) else EXIT_FAILED)
    except KeyboardInterrupt:
        _wrong("stopped; nothing was told", EXIT_STOPPED)


def _wrong(text: str, status: int) -> NoReturn:
    Console(stderr=True).print(
        f"foreserve simulate: {text}", style="red", markup=False, highlight=False, soft_wrap=True
    )
    raise typer.Exit(status)
