"""`foreserve learn` and `foreserve forget`: what a service has learned from, put in and taken out by hand."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from foreserve.app import App
from foreserve.appfile import load_app_file
from foreserve.cli.ending import wrong
from foreserve.clock import wall
from foreserve.errors import ConfigError, ForeserveError
from foreserve.registry import choices
from foreserve.rows import state_folder
from foreserve.samples import Keep, SampleStore, forget, samples_file
from foreserve.services.forgetting import forget_service, learned_services
from foreserve.services.llm import LLM
from foreserve.services.seeding import Counting, Seeder
from foreserve.services.tiers import choose
from foreserve.settings import ForesightSettings, StateSettings
from foreserve.state import forget_tenant, history_file, services_in

console = Console(stderr=True)

AppOption = Annotated[
    str | None, typer.Option("--app", metavar="APP", help="The app file that is served: its settings and tokenizer.")
]
StateOption = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="The state folder. [default: the app's, or FORESERVE_STATE]")
]


def learn(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL: instruction, text, output_tokens or response.")],
    service: Annotated[str, typer.Option(help="The service that is to learn, by its name in the app.")],
    app: AppOption = None,
    state: StateOption = None,
) -> None:
    """Teach a service from known pairs, so that it begins with foresight.

    A row is {"instruction": "…", "text": "…", "output_tokens": 42, "tenant": "…"}; `response`, the answer's text, may
    stand for `output_tokens`. Without --app tokens are guessed by characters, as for an upstream service. No text is
    kept. A running server takes it up within its `train_s`. Example: `foreserve learn pairs.jsonl --service chat`.
    """
    logging.basicConfig(level=logging.WARNING)
    try:
        asyncio.run(_learn(file, service, app, state))
    except ForeserveError as error:
        wrong(str(error))


async def _learn(file: Path, service: str, app_file: str | None, state: str | None) -> None:
    if not service:
        raise ConfigError("--service is empty; valid: the service's name in the app")
    served = None if app_file is None else load_app_file(app_file)
    kind = _kind(served, service)
    settings: ForesightSettings = ForesightSettings() if kind is None else kind.settings.foresight
    folder = _folder(served, state)
    if not settings.remember or settings.predictor == "off":
        raise ConfigError(f"service {service!r} keeps nothing to learn from: `foresight` says so in its settings")
    lines = _lines(file)
    with Progress(console=console, transient=True) as bars:
        task = bars.add_task("reading", total=2 * lines + 1)
        if isinstance(kind, LLM):
            kind.prepare()
        choice, encoder = choose(settings.predictor)
        store = SampleStore.open(folder, {service: Keep(rows=settings.keep_rows, days=settings.keep_days)})
        try:
            seeder = Seeder(service, settings, store, Counting(kind), encoder)
            count = seeder.put(file, wall(), lambda more: bars.advance(task, more))
            bars.update(task, description="training")
            result = seeder.train(folder, wall())
        finally:
            store.close()
    console.print(f"{service} has learned from {count} pairs ({choice.tier} tier: {choice.why})", soft_wrap=True)
    for judged in result.judged:
        console.print(f"{judged.tier} model of {judged.rows} answers: {judged.why}", soft_wrap=True)


def _lines(file: Path) -> int:
    try:
        with file.open("rb") as opened:
            return sum(1 for _ in opened)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None


def _kind(served: App | None, service: str) -> Any:
    """The service's kind. Raises ConfigError for one whose answers are not foreseen."""
    if served is None:
        return None
    foreseeing = [name for name, kind in served.services.items() if hasattr(kind, "foreseer")]
    if service not in foreseeing:
        raise ConfigError(f"--service: no service called {service!r} foresees lengths{choices(service, foreseeing)}")
    return served.services[service]


def _folder(served: App | None, state: str | None) -> Path:
    settings = StateSettings() if served is None else served.settings.state
    if state is not None:
        return Path(state)
    if not settings.history:
        raise ConfigError("the app keeps no state (`state.history` is false)")
    return state_folder(settings)


def forget_(
    tenant: Annotated[str | None, typer.Option(help="The tenant whose requests are to be forgotten.")] = None,
    service: Annotated[str | None, typer.Option(help="Of this service alone; without --tenant all of it.")] = None,
    app: AppOption = None,
    state: StateOption = None,
) -> None:
    """Delete what was learned of a tenant, and its rows in the request history; or what was learned of a service.

    Safe beside a running server: it trains its models anew, without the tenant, at the latest after its `train_s`.
    Without a server that happens at its next start. Of a service all goes, its models at once. Examples:
    `foreserve forget --tenant acme`, `foreserve forget --service old-chat`.
    """
    try:
        if not (tenant or service) or "" in (tenant, service):
            raise ConfigError("whose? valid: --tenant NAME, --service NAME or both")
        folder = _folder(None if app is None else load_app_file(app), state)
        learned, history = samples_file(folder), history_file(StateSettings(folder=str(folder)))
        if not learned.exists() and not history.exists():
            raise ConfigError(f"nothing is kept in {folder}; valid: the folder of a server, as --state or by --app")
        if service is not None:
            kept = learned_services(folder) | (set() if tenant is None else services_in(history))
            if service not in kept:
                raise ConfigError(
                    f"--service: nothing is kept of {service!r} in {folder}{choices(service, sorted(kept))}"
                )
        if tenant is None:
            assert service is not None
            count = forget_service(folder, service)
            console.print(f"{service}: all {count} answers that it had learned from are gone, with its models")
            return
        counts = forget(learned, tenant, service) if learned.exists() else {}
        rows = forget_tenant(history, tenant, service) if history.exists() else 0
    except ForeserveError as error:
        wrong(str(error))
    for name, count in sorted(counts.items()):
        console.print(f"{name}: {count} answers that it had learned from are gone", soft_wrap=True)
    console.print(f"{sum(counts.values())} learned answers and {rows} rows of the request history deleted")
    if counts:
        console.print("models that knew of them are trained anew by the running server, or at its next start")
