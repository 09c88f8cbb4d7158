"""`foreserve graph check APP`: whether graph models can be served, and how, before anyone migrates."""

from __future__ import annotations

from typing import Any

import msgspec
import typer

from foreserve.appfile import load_app_file
from foreserve.errors import ForeserveError
from foreserve.services.graph import Graph

app = typer.Typer(help="Graph services.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Graph services."""


@app.command()
def check(
    app_file: str = typer.Argument(metavar="APP", help="The app file whose graph services are looked at."),
) -> None:
    """Say of each graph service whether its model can be taken apart, layer by layer. Serves nothing.

    Ends with 1 where one cannot, unless it says `mode="recompute"`.
    """
    try:
        services = load_app_file(app_file).services
        kinds = {name: kind for name, kind in services.items() if isinstance(kind, Graph)}
        if not kinds:
            typer.echo(f"{app_file} has no graph service", err=True)
            raise typer.Exit(1)
        refused = [name for name, kind in kinds.items() if not _said(name, kind)]
    except ForeserveError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if refused:
        raise typer.Exit(1)


def _said(name: str, kind: Any) -> bool:
    # Not before it is wanted: it brings torch.
    from foreserve.graphs.making import GraphOptions, check

    kind.check()
    verdict = check(msgspec.convert(kind.options(), GraphOptions))
    typer.echo(f"{name}: {'cannot be taken apart: ' + verdict.refused if verdict.refused else 'can be taken apart'}")
    asked = verdict.refused is not None and kind.settings.mode == "recompute"
    for line in ("it is served by full recompute, as `mode` says",) if asked else verdict.lines:
        typer.echo(f"  {line}")
    return verdict.refused is None or asked
