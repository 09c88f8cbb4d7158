"""`foreserve trace`: look at traces, turn them into ours, and record one from a live server."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from foreserve.cli import trace_words as words
from foreserve.cli.bench_options import check_writable
from foreserve.cli.ending import wrong
from foreserve.cli.trace_import import import_
from foreserve.cli.trace_record import record
from foreserve.cli.trace_report import report
from foreserve.cli.trace_words import console, watching
from foreserve.errors import ForeserveError
from foreserve.plural import counted
from foreserve.traces.own import write_trace
from foreserve.traces.statistics import statistics

app = typer.Typer(help="Traces of requests: look at them, import, convert and record.", no_args_is_help=True)


@app.callback()
def _logging() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


app.command("import")(import_)
app.command()(record)


@app.command()
def show(
    trace: words.TraceFile,
    plot: Annotated[
        Path | None, typer.Option(metavar="HTML", help="Write a page with plots; it opens offline.")
    ] = None,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the statistics as JSON to a file, or to - (stdout).")
    ] = None,
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
) -> None:
    """Statistics of a trace: rate and burstiness, lengths, tenants, shared prefixes, recorded latencies.

    Exit status: 0, or 2 when an option or a row is wrong. Example: `foreserve trace show trace.jsonl --plot t.html`.
    """
    try:
        for where in (plot, None if json == "-" else json):
            check_writable(where)
        read = words.read(trace, format, skip_bad, sort, per_second, start, end, rate, speed, limit, seed)
        with watching(read, "reading") as watched:
            found = statistics(watched)
        if plot is not None:
            from foreserve.traces.plot import plot as write_plot

            write_plot(found, plot)
        if json is not None and json != "-":
            Path(json).write_bytes(msgspec.json.encode(found))
    except ForeserveError as error:
        wrong(str(error))
    if json == "-":
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        Console().print(report(found))
    if plot is not None:
        console.print(f"plots: {plot}", soft_wrap=True)


@app.command()
def convert(
    trace: words.TraceFile,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="JSONL", help="The trace to write, perhaps .xz or .gz.")],
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
    """Turn any known format, or a part of a trace, into a trace of ours.

    Example: `foreserve trace convert servegen.tar.xz --from 7d --to 8d --rate 0.001 -o monday.jsonl`.
    """
    try:
        check_writable(out)
        how = (format, skip_bad, sort, per_second, start, end, rate, speed, limit, seed)
        read = words.read(trace, *how, service, map_ or ())
        with watching(read, "writing") as watched:
            count = write_trace(out, watched)
    except ForeserveError as error:
        wrong(str(error))
    told = f", {watched.skipped:,} malformed rows left out" if watched.skipped else ""
    console.print(f"{out}: {counted(count, 'request')}{told}", soft_wrap=True)
