"""`foreserve servers`: the servers behind a running gateway, and how they join and leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
import typer
from rich.console import Console
from rich.table import Column, Table

from foreserve.cli.ending import EXIT_FAILED, wrong
from foreserve.network import fault

T = TypeVar("T")

LIMIT_S: Final = 60.0
"""A join waits for the server's first answer."""

POLL_S: Final = 0.25

console = Console()

Gateway = Annotated[str, typer.Option("--gateway", help="Foreserve's address.")]
Key = Annotated[
    str | None,
    typer.Option(envvar="FORESERVE_API_KEY", help="The key to show; joining and leaving takes one with admin: true."),
]
Which = Annotated[
    str | None, typer.Option("--service", help="Of this service alone. [default: every one that it fits]")
]
HERE: Final = "http://127.0.0.1:8000"

app = typer.Typer(help="List servers behind a running gateway; let them join and leave.", no_args_is_help=True)


class Refused(Exception):
    """The gateway said no, in its words."""


@app.command("list")
def list_(gateway: Gateway = HERE, api_key: Key = None) -> None:
    """Show every server: its state, what it runs for us, what it has from others.

    Example: `foreserve servers list`.
    """
    services = ask_gateway(gateway, api_key, _services)
    table = Table("service", Column("server", no_wrap=True), "state", "running", "of others", "KV", "reason")
    for name, servers in services.items():
        for one in servers:
            others, kv = one["others"], one["kv_fraction"]
            table.add_row(
                name, one["url"], one["state"], str(one["running"]), "" if others is None else str(others),
                "" if kv is None else f"{kv:.0%}", one["reason"],
            )  # fmt: skip
    console.print(table)


@app.command()
def add(
    server: Annotated[str, typer.Argument(metavar="URL", help="The address of a running server.")],
    gateway: Gateway = HERE,
    service: Which = None,
    api_key: Key = None,
) -> None:
    """Let a running server join: it is checked, asked for one token, and then takes requests.

    It is forgotten when the gateway restarts: the app file says who belongs. Example: `foreserve servers add
    http://gpu3:8000`.

    Exit status: 0; 1 when it did not join; 2 when the gateway cannot be asked.
    """

    async def join(ask: Ask) -> tuple[list[str], list[str]]:
        joined, refused = [], []
        for name in await _named(ask, service):
            try:
                status = await ask("POST", f"/v1/foreserve/services/{quote(name)}/servers", {"url": server})
                joined.append(f"{name}: {status['url']} is {status['state']}")
            except Refused as error:
                refused.append(f"{name}: {error}")
        return joined, refused

    _tell(*ask_gateway(gateway, api_key, join))


@app.command()
def remove(
    server: Annotated[str, typer.Argument(metavar="URL", help="The address of a server that is to leave.")],
    gateway: Gateway = HERE,
    service: Which = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it has finished what it runs.")] = True,
    api_key: Key = None,
) -> None:
    """Let a server leave: it is given nothing new and goes when it has finished what it runs. Then it may be stopped.

    Example: `foreserve servers remove http://gpu3:8000`.

    Exit status: 0; 1 when there is no such server; 2 when the gateway cannot be asked.
    """

    async def leave(ask: Ask) -> tuple[list[str], list[str]]:
        left, refused = [], []
        for name in await _named(ask, service):
            path = f"/v1/foreserve/services/{quote(name)}/servers?url={quote(server, safe='')}"
            try:
                status = await ask("DELETE", path, None)
            except Refused as error:
                refused.append(f"{name}: {error}")
                continue
            while wait and any(_leaves(one, status) for one in (await _services(ask))[name]):  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
            left.append(f"{name}: {status['url']} {'has left' if wait else 'leaves'}")
        return left, refused

    _tell(*ask_gateway(gateway, api_key, leave))


def _leaves(one: dict[str, Any], status: dict[str, Any]) -> bool:
    return bool(one["url"] == status["url"] and one["state"] == "leaving")


def _tell(done: list[str], refused: list[str]) -> None:
    """What was done, and why not where nothing was: a server seldom fits every service."""
    for line in done:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if not done:
        wrong("; ".join(refused) or "there is no upstream service", EXIT_FAILED)


# --- the gateway

Ask = Callable[[str, str, dict[str, Any] | None], Awaitable[Any]]


async def _services(ask: Ask) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = (await ask("GET", "/v1/foreserve/servers", None))["services"]
    return found


async def _named(ask: Ask, service: str | None) -> list[str]:
    return list(await _services(ask)) if service is None else [service]


def ask_gateway(gateway: str, api_key: str | None, work: Callable[[Ask], Awaitable[T]]) -> T:
    """`work`, with a way to ask the gateway. Ends the command when that cannot be asked or refuses all of it."""
    if not gateway.startswith(("http://", "https://")):
        wrong(f"--gateway: {gateway!r} must start with http:// or https://")
    root = gateway.rstrip("/").removesuffix("/v1").rstrip("/")
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}

    async def run() -> T:
        timeout = aiohttp.ClientTimeout(total=LIMIT_S)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:

            async def ask(method: str, path: str, body: dict[str, Any] | None) -> Any:
                async with session.request(method, root + path, json=body) as reply:
                    said = await reply.read()
                    if reply.status >= 400:
                        raise Refused(_words(said) or f"the gateway answers {reply.status}")
                    return msgspec.json.decode(said)

            return await work(ask)

    try:
        return asyncio.run(run())
    except Refused as error:
        wrong(str(error))
    except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as error:
        wrong(f"{root} cannot be asked: {fault(error)}")


def _words(said: bytes) -> str:
    try:
        return str(msgspec.json.decode(said)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""
