"""`foreserve simulate`: what a trace would have cost and how it would have gone, before anything is deployed."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from foreserve.cli import trace_words as words
from foreserve.cli.ending import EXIT_FAILED, EXIT_STOPPED, EXIT_WRONG, wrong
from foreserve.errors import ConfigError, ForeserveError

_RUNS, _FAULTS, _OUT = "Runs", "Faults", "Output"


_WITHOUT_TRACE = ("--faults", "--fault-seed", "--seeds", "--seed", "--jobs", "--quiet")
"""All that a sweep over random apps heeds."""

_WITH = {"--fault-seed": "--faults", "--seeds": "--faults", "--jobs": "--seeds", "--timeline-requests": "--timeline"}
"""What does nothing without another option."""

_NOT_SWEPT = ("--compare", "--vary", "--history", "--price", "--report", "--timeline", "--json", "--record-decisions")
"""What is of one run and means nothing for many seeds."""


def simulate(
    context: typer.Context,
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
    history: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN",
            help="So much of the trace's beginning is only learned from, not played: loads and lengths of answers.",
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
    anything given is wrong, and nothing has run then; under --faults 1 when a check failed.

    Examples: `foreserve simulate monday.jsonl --app app.py`, `foreserve simulate monday.jsonl --app app.py
    --set chat.replicas=3 --compare fcfs.yaml six.yaml --report out.html`, `foreserve simulate --faults mixed
    --seeds 1000`.
    """
    from foreserve.appfile import load_app_file
    from foreserve.cli.simulate_runs import Outputs, play
    from foreserve.cli.simulate_sweep import Asked, sweep, sweep_random
    from foreserve.simulation.comparison import files_read, variants
    from foreserve.simulation.past import parted
    from foreserve.simulation.variants import assignments, varied

    # Replicas are lost and lengths learned by the thousand; what is wrong with the house itself is an error.
    logging.basicConfig(level=logging.ERROR)
    console = Console(stderr=json == "-")
    try:
        _check_together(context)
        first = seed if fault_seed is None else fault_seed
        if trace is None or app is None:
            assert faults is not None
            assert seeds is not None
            failed = sweep_random(console, faults, range(first, first + seeds), jobs=jobs, quiet=quiet)
            raise typer.Exit(EXIT_FAILED if failed else 0)
        if len(trace) > 1 and not compare:
            raise ConfigError(f"one TRACE is played at a time, not {trace[1]} too; runs are compared by --compare")
        reading = (format, skip_bad, sort, per_second, start, end, rate, speed, limit)
        if seeds is not None:
            assert faults is not None
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
        if price is not None and not math.isfinite(price):
            raise ConfigError(f"--price is {price}; it must be a finite number, at least 0")
        values = None if vary is None else varied(vary)
        runs = variants(load_app_file(app), Path(app).name, assignments(set_ or []), files, profile or [], values)
        outputs = Outputs(report, timeline, timeline_requests, json, record_decisions)
        outputs.check(len(runs), [Path(trace[0]), *files_read(app, files, profile or [], runs[0].app)])
        read = words.read(Path(trace[0]), *reading, seed, service, map_ or ())
        past = None
        if history is not None:
            past, read = parted(read, words.seconds("--history", history))
        results = play(
            console, read, runs, seed, outputs, quiet=quiet, faults=faults, fault_seed=first, price=price, past=past
        )
        if any(result.findings for result in results):
            raise typer.Exit(EXIT_FAILED)
    except ForeserveError as error:
        wrong(str(error), EXIT_WRONG if isinstance(error, ConfigError) else EXIT_FAILED)
    except KeyboardInterrupt:
        wrong("stopped; nothing was told", EXIT_STOPPED)


def _check_together(context: typer.Context) -> None:
    """Whether all that was given goes together, so that nothing is silently left out. Raises ConfigError."""
    given: list[str] = []
    for each in context.command.params:
        source = context.get_parameter_source(each.name or "")
        if source is not None and source.name == "COMMANDLINE":
            given.append(next((option for option in each.opts if option.startswith("--")), "TRACE"))
    if "TRACE" not in given or "--app" not in given:
        if "TRACE" in given or "--app" in given or not {"--faults", "--seeds"} <= set(given):
            lost = " and ".join(each for each in ("TRACE", "--app") if each not in given)
            verb = "are" if " and " in lost else "is"
            raise ConfigError(f"{lost} {verb} missing; only --faults WORDS --seeds N goes without TRACE and --app")
        _refuse([each for each in given if each not in _WITHOUT_TRACE], "nothing without TRACE and --app")
    for one, other in _WITH.items():
        if one in given and other not in given:
            raise ConfigError(f"{one} goes with {other}, which is missing")
    if "--seeds" in given:
        _refuse([each for each in given if each in _NOT_SWEPT], "nothing with --seeds")


def _refuse(given: Sequence[str], why: str) -> None:
    if given:
        raise ConfigError(f"{', '.join(given)} would do {why}; leave out one or the other")
