"""`foreserve explain`: why a request took as long as it did, and why there are as many replicas as there are."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from foreserve.appfile import load_app_file
from foreserve.cli import explain_scaling
from foreserve.cli.ending import wrong
from foreserve.cli.explain_report import newest_table, parts_table, request_table
from foreserve.cli.explain_words import paragraph, parts_line, summary, summary_line
from foreserve.errors import ConfigError
from foreserve.rows import state_folder
from foreserve.scaling import ScalingDecision
from foreserve.settings import StateSettings
from foreserve.state import HistoryReader, Past, history_file

NAMED = 5
"""How many of the newest requests an error names."""

MOST = 1000
"""The most requests that one table shows."""


def explain(
    request_id: Annotated[
        str | None,
        typer.Argument(metavar="[REQUEST_ID]", help="The request's id, as its reply's x-request-id has it."),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST,
            help="The requests that ended last, a line each, and a summary. With --scaling: so many decisions. "
            f"[default: {explain_scaling.LAST}]",
        ),
    ] = None,
    service: Annotated[str | None, typer.Option(help="With --last or --scaling: those of one service alone.")] = None,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="The decisions on how many replicas there are, a line each, oldest first.")
    ] = False,
    app: Annotated[
        str | None, typer.Option(metavar="APP", help="The app file that is served, for where its history is.")
    ] = None,
    state: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The folder of the history. [default: FORESERVE_STATE]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell what was foreseen of a request and what came of it: its length, its time, what it waited for.

    Reads the request history, beside the server or after its end; no text of prompts or answers is kept there. Exit
    status: 0, or 2 when there is no such request or an option is wrong. Examples: `foreserve explain req-7f3a`,
    `foreserve explain --last 20 --service chat`, `foreserve explain --scaling`.
    """
    try:
        if scaling:
            if request_id is not None:
                raise ConfigError("--scaling tells of replicas; give a REQUEST_ID or --scaling, not both")
            folder = state_folder(_settings(app, state))
            _show_scaling(explain_scaling.found(folder, last or explain_scaling.LAST, service), json)
            return
        if (request_id is None) == (last is None):
            raise ConfigError("give one REQUEST_ID, --last N or --scaling; see foreserve explain --help")
        if service is not None and last is None:
            raise ConfigError("--service goes with --last; an id alone names its request")
        history = HistoryReader(history_file(_settings(app, state)))
        if request_id is not None:
            past = _find(history, request_id)
            _show(past, history.children(past.id), json)
        else:
            _show_last(_recent(history, last or 1, service), json)
    except ConfigError as error:
        wrong(str(error))


def _settings(app: str | None, state: str | None) -> StateSettings:
    """Where the history is. Raises ConfigError when both or neither way of naming it makes sense."""
    if app is not None and state is not None:
        raise ConfigError("--app and --state both name the folder of the history; give one of them")
    if app is None:
        return StateSettings(folder=state)
    settings = load_app_file(app).settings.state
    if not settings.history:
        raise ConfigError(f"{app}: `state.history` is off, so nothing is kept that could be explained")
    return settings


def _find(history: HistoryReader, request_id: str) -> Past:
    # Replies carry the id behind what kind of reply they are.
    past = history.find(request_id) or history.find(request_id.removeprefix("chatcmpl-").removeprefix("cmpl-"))
    if past is None:
        newest = ", ".join(each.id for each in history.recent(NAMED))
        there = f"the newest are {newest}" if newest else "it has none yet"
        raise ConfigError(f"no request {request_id!r} has ended, as the history {history.path} has it; {there}")
    return past


def _recent(history: HistoryReader, last: int, service: str | None) -> list[Past]:
    """Oldest first, as they ended."""
    found = history.recent(last, service)[::-1]
    if not found:
        of = f" of a service {service!r}" if service else ""
        services = sorted({past.service for past in history.recent(MOST)})
        there = f"; those of late are of {', '.join(services)}" if services else ""
        raise ConfigError(f"the history {history.path} has no request{of}{there}")
    return found


def _show(past: Past, parts: list[Past], json: bool) -> None:
    words = [*paragraph(past), *([parts_line(parts)] if parts else [])]
    if json:
        _write({"request": past, "words": words, "parts": parts})
        return
    console = _console()
    console.print(" ".join(words), markup=False, highlight=False)
    console.print()
    console.print(request_table(past))
    if parts:
        console.print(parts_table(parts))


def _show_last(found: list[Past], json: bool) -> None:
    figures = summary(found)
    if json:
        _write({"requests": found, "summary": figures})
        return
    console = _console()
    console.print(newest_table(found))
    console.print(summary_line(figures), markup=False, highlight=False)


def _show_scaling(kept: list[ScalingDecision], json: bool) -> None:
    words = explain_scaling.sentences(kept)
    if json:
        _write({"decisions": kept, "words": words})
        return
    for line in words:
        _console().print(line, markup=False, highlight=False, soft_wrap=True)


def _console() -> Console:
    """On a terminal as wide as it is; in a file or a pipe wide enough for whole rows."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _write(document: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
