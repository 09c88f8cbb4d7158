"""`foreserve calibrate`: measure an engine on this machine, or a running server, and write its profile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from foreserve.app import App
from foreserve.appfile import load_app_file
from foreserve.errors import ConfigError, ForeserveError
from foreserve.fleet.local import LocalLauncher
from foreserve.registry import choices
from foreserve.rows import state_folder
from foreserve.services.llm import LLM
from foreserve.simulation.calibrate import calibrate as measure
from foreserve.simulation.calibrate_plan import Effort, Tell
from foreserve.simulation.profiles import profile_file, save_profile, summary

if TYPE_CHECKING:
    from foreserve.engines.profile import EngineProfile

T = TypeVar("T")

console = Console(stderr=True)

EXIT_FAILED = 1
"""The engine did not start, or failed while it was measured."""

EXIT_WRONG = 2
"""An argument, the file or the app is wrong."""

EXIT_STOPPED = 130
"""Ctrl-C."""


def calibrate(
    app_file: Annotated[str, typer.Argument(metavar="APP", help="The app file that is served: app.py or app.yaml.")],
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
) -> None:
    """Measure what a service's engine takes on this machine, for `foreserve simulate`.

    The engine is started as it is served, with the service's settings, and has the machine to itself: measure where
    and how it will run, with nothing else going on. Prompts are random token ids. Examples:
    `foreserve calibrate app.py`, `foreserve calibrate app.yaml --service chat --quick -o chat.yaml`.
    """
    logging.basicConfig(level=logging.WARNING)
    try:
        effort = msgspec.structs.replace(Effort.chosen(quick, seconds), starts=starts)
        app = load_app_file(app_file)
        name, kind = _service(app, service)
        file = out or profile_file(name, state_folder(app.settings.state))
        with _Bar() as tell:
            profile = _in_loop(_engine(name, kind, effort, tell))
        save_profile(profile, file)
    except ForeserveError as error:
        _wrong(str(error), EXIT_WRONG if isinstance(error, ConfigError) else EXIT_FAILED)
    except KeyboardInterrupt:
        _wrong("stopped; nothing was written", EXIT_STOPPED)
    console.print(summary(profile))
    for note in profile.notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {file}", soft_wrap=True, highlight=False, markup=False)


def _service(app: App, wanted: str | None) -> tuple[str, LLM]:
    """The service that is meant. Raises ConfigError with those that can be."""
    every: dict[str, Any] = dict(app.services)
    can: dict[str, LLM] = {name: kind for name, kind in every.items() if isinstance(kind, LLM)}
    if wanted is not None:
        if wanted not in can:
            raise ConfigError(f"--service: no service called {wanted!r} can be measured{choices(wanted, can)}")
        return wanted, can[wanted]
    if len(can) != 1:
        words = f"one of {', '.join(can)}" if can else "the app has no language model"
        raise ConfigError(f"which service? {words}; valid: --service NAME")
    return next(iter(can.items()))


async def _engine(name: str, kind: LLM, effort: Effort, tell: Tell) -> EngineProfile:
    """Of a service of ours, in a worker process as it is served."""
    kind.prepare(lambda done, what: tell(0.0, what))
    if not kind.settings.replicas:
        raise ConfigError(f"service {name!r} has no replicas: there is no engine to measure; valid: at least 1")
    spec = kind.engines()[0]
    if kind.engine_name == "simulated":  # it tells each token only where it is asked to
        spec = msgspec.structs.replace(spec, options={**spec.options, "emit_every": 1})
    launcher = LocalLauncher()
    try:
        what = f"{name}: {kind.settings.model} ({kind.engine_name})"
        return await measure(launcher, spec, kind.text.vocabulary, effort, name=what, tell=tell)
    finally:
        await launcher.close()


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


def _wrong(words: str, code: int) -> NoReturn:
    console.print(Text.assemble(("foreserve: ", "red"), words), soft_wrap=True)
    raise typer.Exit(code)
