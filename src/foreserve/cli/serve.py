"""`foreserve serve`: an app file, or running servers, behind one API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Annotated, Any, NoReturn

import msgspec
import typer
import uvicorn
import uvloop
from fastapi import FastAPI
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.text import Text

from foreserve import __version__
from foreserve.app import App
from foreserve.appfile import load_app_file
from foreserve.cli.ending import EXIT_FAILED, wrong
from foreserve.errors import ConfigError, ForeserveError
from foreserve.gateway.http import create_app
from foreserve.preflight import check
from foreserve.preflight import port as port_free
from foreserve.running import Running
from foreserve.services.discovery import Discovery
from foreserve.settings import ApiKey, ClusterSettings, Environment, FunctionSettings, ServerSettings

console = Console(stderr=True)
log = logging.getLogger("foreserve")

API_KEY = "FORESERVE_API_KEY"
"""Keys for clients, separated by blanks."""

ADMIN_KEY = "FORESERVE_ADMIN_KEY"
"""Keys that may also let servers join and leave, separated by blanks."""


def serve(
    app_file: Annotated[
        str | None,
        typer.Argument(metavar="[APP]", help="An app file: app.py, app.py:name or app.yaml. Not with --upstream."),
    ] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A running OpenAI-compatible server to stand in front of. May be repeated."),
    ] = None,
    observe: Annotated[
        bool,
        typer.Option("--observe", help="With --upstream: forward all unchanged, report what would have been done."),
    ] = False,
    max_running: Annotated[
        int | None, typer.Option(min=1, help="With --upstream: requests in flight at each server. [default: 64]")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: the app's, or 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on. [default: the app's, or 8000]")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar=API_KEY, help="A key that clients must show. May be repeated."),
    ] = None,
    admin_key: Annotated[
        list[str] | None,
        typer.Option(envvar=ADMIN_KEY, help="A key that may also let servers join and leave. May be repeated."),
    ] = None,
    probe: Annotated[
        bool | None,
        typer.Option(
            "--probe/--no-probe",
            help="With --upstream: ask silent servers for one token. [default: yes, unless --observe]",
        ),
    ] = None,
    record_decisions: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Record every decision with its inputs, for foreserve replay."),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="Where replicas run: local, ray (a cluster of this machine), ray://auto or ray://HEAD:PORT. "
            "[default: the app's, or local]",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check policies, models, memory, port and interpreters, and start nothing."),
    ] = False,
) -> None:
    """Serve an app file, or stand in front of running servers.

    Examples: `foreserve serve app.py`, `foreserve serve --upstream http://127.0.0.1:8001`.
    """
    environment = Environment.read()
    _log_to_console(environment.log_level)
    try:
        app, found = _app(app_file, upstream or [], observe, max_running, probe)
        server = _server(app, host, port, api_key or [], admin_key or [])
        app.settings = msgspec.structs.replace(app.settings, server=server)
        if on is not None:
            app.settings = msgspec.structs.replace(app.settings, cluster=_cluster(app.settings.cluster, on))
        if record_decisions is not None:
            state = msgspec.structs.replace(app.settings.state, decisions=record_decisions)
            app.settings = msgspec.structs.replace(app.settings, state=state)
        if dry_run:
            _report(app)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(app, found))
    except ForeserveError as error:
        wrong(str(error))


def _app(
    app_file: str | None, upstream: list[str], observe: bool, max_running: int | None, probe: bool | None
) -> tuple[App, Discovery | None]:
    """What is to be served, and what may find more of it. Raises ConfigError."""
    if bool(app_file) == bool(upstream):
        wrong("give an app file, or --upstream URL; see foreserve serve --help")
    if app_file:
        if observe or max_running or probe is not None:
            wrong("--observe, --max-running and --probe go with --upstream; in an app file they are Upstream(…)'s")
        return load_app_file(app_file), None
    words: dict[str, Any] = {"observe": observe, "probe": probe}
    if max_running:
        words["max_running"] = max_running
    found = Discovery(upstream, **words)
    services: dict[str, Any] = dict(asyncio.run(found.services()))
    return App(**services), found


def _server(app: App, host: str | None, port: int | None, keys: list[str], admin_keys: list[str]) -> ServerSettings:
    """The app's server settings with what the command line overrides. Raises ConfigError for a blank key."""
    server = app.settings.server
    # An empty variable reaches us as no keys at all, which would open the server that somebody meant to lock.
    for variable, given in ((API_KEY, keys), (ADMIN_KEY, admin_keys)):
        if not given and not os.environ.get(variable, "key").strip():
            raise ConfigError(f"{variable} is set but empty; give it a key, or unset it to serve without keys")
    for option, given in (("--api-key", keys), ("--admin-key", admin_keys)):
        if not all(key.strip() for key in given):
            raise ConfigError(f"{option} is empty or blank; anybody could show it")
    more = [ApiKey(key=key) for key in keys] + [ApiKey(key=key, admin=True) for key in admin_keys]
    return msgspec.structs.replace(
        server,
        host=server.host if host is None else host,
        port=server.port if port is None else port,
        api_keys=[*server.api_keys, *more],
    )


def _cluster(cluster: ClusterSettings, on: str) -> ClusterSettings:
    """The app's cluster settings with where the command line wants replicas. Raises ConfigError."""
    kind, colon, address = on.partition("://")
    if kind not in ("local", "ray") or (colon and (kind == "local" or not address)):
        raise ConfigError(f"--on is {on!r}; valid: local, ray, ray://auto, ray://HEAD:PORT")
    words = {name: getattr(cluster, name) for name in cluster.__struct_fields__}
    try:
        return ClusterSettings(**{**words, "on": kind, "address": address or None})
    except ValueError as error:
        raise ConfigError(f"--on is {on!r}: {error}") from None


def _report(app: App) -> NoReturn:
    """Print every finding of the dry run and exit: 0 when all is well."""
    findings = check(app)
    for finding in findings:
        mark = ("ok    ", "green") if finding.ok else ("wrong ", "red")
        console.print(Text.assemble(mark, f"{finding.what}: {finding.detail}"), soft_wrap=True)
    wrong = sum(not finding.ok for finding in findings)
    console.print("all is well; nothing was started" if not wrong else f"{wrong} to mend; nothing was started")
    raise typer.Exit(EXIT_FAILED if wrong else 0)


FIND_S = 5.0
"""How often servers that have not answered yet are asked what they serve."""


class _Server(uvicorn.Server):
    """Says where it listens once the services are ready, and ends when they cannot be."""

    def __init__(self, config: uvicorn.Config, drain_s: float, stopping: Callable[[], None]) -> None:
        """`stopping` is called, on the loop, when the server is asked to stop: what would stream forever ends then."""
        super().__init__(config)
        self._drain_s = drain_s
        self._stopping = stopping
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failed: BaseException | None = None
        self.listens = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn's, and says what is waited for."""
        again = "; once more cuts them off" if sig == signal.SIGINT else ""
        if not self.should_exit:
            open_requests = len(self.server_state.tasks)
            log.info("stopping; up to %g s for %d open requests%s", self._drain_s, open_requests, again)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and tells when it listens."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if not self.should_exit:
            log.info("listening on %s port %d; the services start", self.config.host, self.port())
        self.listens.set()

    def port(self) -> int:
        """The port in use, also where 0 was asked for."""
        return int(self.servers[0].sockets[0].getsockname()[1])


async def _serve(app: App, found: Discovery | None = None) -> None:
    """Serve until a signal. The HTTP server is up at once, so that probes see what is being waited for."""
    settings = app.settings.server
    if not (finding := port_free(settings)).ok:
        raise ConfigError(f"{finding.what}: {finding.detail}")
    running = app.run()

    @contextlib.asynccontextmanager
    async def lifespan(http: FastAPI) -> AsyncIterator[None]:
        starting = [asyncio.create_task(_start(running, server))]
        if found is not None and found.silent:
            starting.append(asyncio.create_task(_find_more(running, found)))
        try:
            yield
        finally:
            for task in starting:
                task.cancel()
            await asyncio.wait(starting)
            await running.stop()

    http = create_app(running, lifespan)
    server = _Server(
        uvicorn.Config(
            http,
            host=settings.host,
            port=settings.port,
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=settings.max_connections,
            timeout_graceful_shutdown=int(settings.drain_s),
        ),
        settings.drain_s,
        http.state.recordings.close,
    )
    await server.serve()
    if server.failed is not None:
        wrong(str(server.failed), EXIT_FAILED)


async def _start(running: Running, server: _Server) -> None:
    """Start the services with a progress bar for what is slow, then say how to reach them."""
    with Progress(console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(done: float, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=1.0)
            bars.update(tasks[what], completed=done)

        try:
            await running.start(progress)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, ForeserveError):
                log.exception("the services could not be started")
            server.failed = error
            server.should_exit = True
            return
    await server.listens.wait()
    settings = running.settings.server
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    _greet(running, f"http://{host}:{server.port()}")


async def _find_more(running: Running, found: Discovery) -> None:
    """Of servers that did not answer at the start: the models that they have alone, once they do."""
    missing: dict[str, Any] = {}
    while found.silent or missing:
        await asyncio.sleep(FIND_S)
        if not running.started:
            continue
        try:
            missing |= await found.more()
            for name in list(missing):
                await running.add(name, missing[name])
                del missing[name]
                log.info("%s is served as well now", name)
        except ForeserveError as error:
            log.warning("%s", error)


def _greet(running: Running, url: str) -> None:
    key = " -H 'authorization: Bearer YOUR_KEY'" if running.settings.server.api_keys else ""
    names = ", ".join((*running.services, *running.pipelines))
    console.print(f"[bold]Foreserve {__version__}[/] serves {names} at [bold]{url}[/]", soft_wrap=True)
    chat = next((name for name, s in running.services.items() if s.kind.name in ("llm", "upstream")), None)
    if chat is not None:
        body = f'{{"model": "{chat}", "messages": [{{"role": "user", "content": "Say hello."}}], "temperature": 0}}'
        line = f"curl {url}/v1/chat/completions -H 'content-type: application/json'{key} -d '{body}'"
        console.print("Try it:")
        console.print(f"  {line}", soft_wrap=True, highlight=False, markup=False)
    if paths := _paths(running):
        console.print(f"Functions: POST {', '.join(paths)}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Status {url}/ · OpenAPI {url}/docs · metrics {url}/metrics", highlight=False, soft_wrap=True)


def _paths(running: Running) -> list[str]:
    """Of each function, its own path where it has one."""
    functions = [(n, s.settings) for n, s in running.services.items() if isinstance(s.settings, FunctionSettings)]
    return [settings.route or f"/v1/functions/{name}" for name, settings in functions]


def _log_to_console(level: str) -> None:
    if level not in logging.getLevelNamesMapping():
        valid = ", ".join(logging.getLevelNamesMapping())
        wrong(f"FORESERVE_LOG is {level!r}; valid: {valid}")
    # Not rich's handler: laying out one line takes it longer than a request takes us.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("foreserve").setLevel(level)
