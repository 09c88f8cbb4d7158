"""`foreserve trace import`: a gateway's own log, by the names of its columns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import msgspec
import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from foreserve.cli.bench_options import check_writable
from foreserve.cli.ending import wrong
from foreserve.cli.trace_words import console
from foreserve.errors import ConfigError, ForeserveError
from foreserve.plural import counted
from foreserve.registry import choices
from foreserve.traces.columns import TimeFormat
from foreserve.traces.importing import RECIPES, Columns, Log
from foreserve.traces.own import write_trace

_COLUMNS, _TIMES = "Columns", "Times"


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV with a header, JSONL or a JSON array; .xz or .gz.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="JSONL", help="The trace to write, perhaps .xz or .gz.")],
    recipe: Annotated[
        str | None, typer.Option("--from-gateway", help=f"Columns as a gateway writes them: {', '.join(RECIPES)}.")
    ] = None,
    arrival: Annotated[
        str | None, typer.Option(help="When it came; or give --end and --duration.", rich_help_panel=_COLUMNS)
    ] = None,
    end: Annotated[str | None, typer.Option(help="When it ended.", rich_help_panel=_COLUMNS)] = None,
    duration: Annotated[
        str | None, typer.Option(help="How long it took, in seconds or --ms.", rich_help_panel=_COLUMNS)
    ] = None,
    ttft: Annotated[
        str | None,
        typer.Option(help="Until the first token, as a duration, or when that was.", rich_help_panel=_COLUMNS),
    ] = None,
    input_tokens: Annotated[str | None, typer.Option(help="Tokens of the prompt.", rich_help_panel=_COLUMNS)] = None,
    output_tokens: Annotated[str | None, typer.Option(help="Tokens of the answer.", rich_help_panel=_COLUMNS)] = None,
    max_tokens: Annotated[
        str | None, typer.Option(help="The limit that the client set, in tokens.", rich_help_panel=_COLUMNS)
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="On whose behalf.", rich_help_panel=_COLUMNS)] = None,
    model: Annotated[str | None, typer.Option(help="The model: the row's service.", rich_help_panel=_COLUMNS)] = None,
    app: Annotated[
        str | None, typer.Option(help="The application that several requests share.", rich_help_panel=_COLUMNS)
    ] = None,
    status: Annotated[
        str | None, typer.Option(help="How it ended: success, a status code, …", rich_help_panel=_COLUMNS)
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Take such records alone. May be repeated.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Leave such records out. May be repeated.")
    ] = None,
    times: Annotated[
        str, typer.Option(help=f"How times are written: {', '.join(get_args(TimeFormat))}.", rich_help_panel=_TIMES)
    ] = "auto",
    zone: Annotated[str, typer.Option(help="The zone of dates that name none.", rich_help_panel=_TIMES)] = "UTC",
    ms: Annotated[bool, typer.Option("--ms", help="Durations are milliseconds.", rich_help_panel=_TIMES)] = False,
    hide_tenants: Annotated[bool, typer.Option("--hide-tenants", help="Call tenants t1, t2, … instead.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out and count malformed records.")] = False,
) -> None:
    """Turn a gateway's log into a trace, by the names of its columns.

    A name may be a dotted path into JSON (`usage.prompt_tokens`), and several by commas are the first that is not
    empty. Text of prompts is not read. Examples: `foreserve trace import spend.csv --from-gateway litellm -o t.jsonl`,
    `foreserve trace import log.jsonl --end ts --duration ms --ms --input-tokens usage.in -o t.jsonl`.
    """
    try:
        check_writable(out)
        asked = {
            "arrival": arrival, "end": end, "duration": duration, "ttft": ttft, "input_tokens": input_tokens,
            "output_tokens": output_tokens, "most_tokens": max_tokens, "tenant": tenant, "service": model, "app": app,
            "status": status,
        }  # fmt: skip
        start = _recipe(recipe)
        given = {name: text for name, text in asked.items() if text is not None}
        must = msgspec.structs.replace(Columns(), **given, only=tuple(only or ()), without=tuple(without or ()))
        where = msgspec.structs.replace(
            start,
            **given,
            only=(*start.only, *must.only),
            without=(*start.without, *must.without),
            times=times,
            zone=zone,
            durations_in_ms=ms,
        )
        with Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,} records"),
            TimeElapsedColumn(), console=console, transient=True,
        ) as bars:  # fmt: skip
            task = bars.add_task("reading", total=None)
            log = Log(
                file,
                where,
                skip_bad=skip_bad,
                hide_tenants=hide_tenants,
                told=lambda count: bars.update(task, completed=count),
                must=must,
            )
            count = write_trace(out, log)
    except ForeserveError as error:
        wrong(str(error))
    told = f", {log.left_out:,} left out as was asked" if log.left_out else ""
    told += f", {log.skipped:,} malformed records left out" if log.skipped else ""
    console.print(f"{out}: {counted(count, 'request')}{told}", soft_wrap=True)


def _recipe(name: str | None) -> Columns:
    if name is None:
        return Columns()
    if name not in RECIPES:
        raise ConfigError(f"--from-gateway: {name!r} is not known{choices(name, RECIPES)}")
    return RECIPES[name]
