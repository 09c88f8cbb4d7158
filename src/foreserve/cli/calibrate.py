"""`foreserve calibrate`: measure an engine on this machine, or a running server, and write its profile."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from foreserve.app import App
from foreserve.appfile import load_app_file
from foreserve.cli.ending import EXIT_FAILED, EXIT_STOPPED, EXIT_WRONG, wrong
from foreserve.errors import ConfigError, ForeserveError
from foreserve.loadgen.client import first_model
from foreserve.registry import choices
from foreserve.rows import state_folder
from foreserve.services.llm import LLM
from foreserve.services.upstream import Upstream
from foreserve.settings import StateSettings
from foreserve.simulation.calibrate_plan import Effort, Tell
from foreserve.simulation.calibrate_remote import Told, calibrate_remote
from foreserve.simulation.calibrate_service import calibrate_service
from foreserve.simulation.profiles import profile_file, save_profile, summary

if TYPE_CHECKING:
    from foreserve.engines.profile import EngineProfile

T = TypeVar("T")

console = Console(stderr=True)

_REMOTE = "A running server"


def calibrate(
    app_file: Annotated[
        str | None, typer.Argument(metavar="[APP]", help="The app file that is served: app.py or app.yaml.")
    ] = None,
    service: Annotated[
        str | None, typer.Option(help="Which of its services, by name. [default: the only one that can be measured]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file to write. [default: profiles/SERVICE.yaml in the state folder]"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Half a minute and coarser tables.")] = False,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds of measuring after the starts. [default: 120, with --quick 25]")
    ] = None,
    starts: Annotated[int, typer.Option(help="How often the engine is started; the median is kept.")] = 2,
    url: Annotated[
        str | None, typer.Option(help="Measure a running OpenAI-compatible server.", rich_help_panel=_REMOTE)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Its model. [default: the first it lists]", rich_help_panel=_REMOTE)
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds its key.", rich_help_panel=_REMOTE)
    ] = None,
    slots: Annotated[
        int | None, typer.Option(help="Requests that it runs at once. [default: found out]", rich_help_panel=_REMOTE)
    ] = None,
    kv_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens that its KV cache holds. [default: all slots full]", rich_help_panel=_REMOTE),
    ] = None,
    context_tokens: Annotated[
        int | None, typer.Option(help="The model's context. [default: as it lists, or 8192]", rich_help_panel=_REMOTE)
    ] = None,
    max_batched_tokens: Annotated[
        int | None, typer.Option(help="Tokens of one step. [default: found out]", rich_help_panel=_REMOTE)
    ] = None,
) -> None:
    """Measure what an engine takes, for `foreserve simulate`: steps, start and memory.

    The engine of a service is started as it is served and has the machine to itself: measure where and how it will
    run, with nothing else going on. Prompts are random token ids. A running server is measured from outside. Examples:
    `foreserve calibrate app.py`, `foreserve calibrate app.yaml --service chat --quick -o chat.yaml`,
    `foreserve calibrate --url http://gpu1:8000 --service chat`.
    """
    logging.basicConfig(level=logging.WARNING)
    told = Told(slots=slots, kv_tokens=kv_tokens, context_tokens=context_tokens, max_batched_tokens=max_batched_tokens)
    try:
        effort = msgspec.structs.replace(Effort.chosen(quick, seconds), starts=starts)
        remote = None if url is None else Remote(url, model, api_key_env)
        name, kind, folder = _meant(app_file, service, remote)
        file = out or profile_file(name, folder)
        with _Bar() as tell:
            profile = _in_loop(_measured(name, kind, told, effort, tell))
        save_profile(profile, file)
    except ForeserveError as error:
        wrong(str(error), EXIT_WRONG if isinstance(error, ConfigError) else EXIT_FAILED)
    except KeyboardInterrupt:
        wrong("stopped; nothing was written", EXIT_STOPPED)
    console.print(summary(profile), soft_wrap=True, highlight=False, markup=False)
    for note in profile.notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {file}", soft_wrap=True, highlight=False, markup=False)


class Remote(msgspec.Struct, frozen=True):
    """A running server: its address, its model (`None`: the first that it lists) and where its key is."""

    url: str
    model: str | None = None
    api_key_env: str | None = None


def _meant(app_file: str | None, service: str | None, remote: Remote | None) -> tuple[str, LLM | Remote, Path]:
    """What is to be measured, how it is called, and the state folder. Raises ConfigError."""
    if (app_file is None) == (remote is None):
        raise ConfigError("what is to be measured? valid: an app file, or --url URL")
    if remote is not None:
        return service or remote.model or "server", remote, state_folder(StateSettings())
    assert app_file is not None
    app = load_app_file(app_file)
    name, kind = _service(app, service)
    return name, kind, state_folder(app.settings.state)


def _service(app: App, wanted: str | None) -> tuple[str, LLM | Remote]:
    """The service that is meant. Raises ConfigError with those that can be."""
    can: dict[str, LLM | Remote] = {}
    for name, kind in app.services.items():
        if isinstance(kind, LLM):
            can[name] = kind
        elif isinstance(kind, Upstream):  # each of its servers is a replica, so they are alike
            can[name] = Remote(kind.asked.urls[0], kind.asked.model, kind.asked.api_key_env)
    if wanted is not None:
        if wanted not in can:
            raise ConfigError(f"--service: no service called {wanted!r} can be measured{choices(wanted, can)}")
        return wanted, can[wanted]
    if len(can) != 1:
        words = f"one of {', '.join(can)}" if can else "the app has no language model"
        raise ConfigError(f"which service? {words}; valid: --service NAME")
    return next(iter(can.items()))


async def _measured(name: str, kind: LLM | Remote, told: Told, effort: Effort, tell: Tell) -> EngineProfile:
    if isinstance(kind, Remote):
        return await _server(name, kind, told, effort, tell)
    given = [f"--{word.replace('_', '-')}" for word, value in msgspec.structs.asdict(told).items() if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: an engine of ours tells that itself; valid with a running server only")
    return await calibrate_service(name, kind, effort, tell=tell)


async def _server(name: str, remote: Remote, told: Told, effort: Effort, tell: Tell) -> EngineProfile:
    """Of one that already runs."""
    headers: dict[str, str] = {}
    if remote.api_key_env is not None:
        key = os.environ.get(remote.api_key_env, "")
        if not key.strip():
            raise ConfigError(f"the environment variable {remote.api_key_env} holds no key")
        headers["authorization"] = f"Bearer {key}"
    model = remote.model or await first_model(remote.url, headers)
    return await calibrate_remote(remote.url, model, headers, told, effort, name=f"{name}: {model} (server)", tell=tell)


class _Bar:
    """A progress bar that says what is measured; nothing where the console is no terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._bar.add_task("preparing", total=1.0)

    def __enter__(self) -> Tell:
        self._bar.start()
        return lambda done, what: self._bar.update(self._task, completed=done, description=what)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def _in_loop(work: Coroutine[Any, Any, T]) -> T:
    """On a loop of its own. Ctrl-C cancels the work, which then ends what it has started."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
