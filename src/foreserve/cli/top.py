"""`foreserve top`: the stages of services, what workers hold of memory and what they share, as it changes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from foreserve.cli.servers import HERE, Ask, Gateway, ask_gateway

console = Console()

PATH: Final = "/v1/foreserve/runtime"
LEAST_EVERY_S: Final = 1.0


def top(
    gateway: Gateway = HERE,
    once: Annotated[bool, typer.Option("--once", help="Print it once, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the gateway tells, once, as JSON.")] = False,
    every: Annotated[float, typer.Option(min=LEAST_EVERY_S, help="Seconds between two looks.")] = 2.0,
    api_key: Annotated[str | None, typer.Option(envvar="FORESERVE_API_KEY", help="The key to show.")] = None,
) -> None:
    """Show services with their stage of exit, workers with their memory, shared weights and contexts.

    Memory is Pss, which counts a page that n processes have a nth in each, so sums are true. Example: `foreserve top`.

    Exit status: 0; 2 when the gateway cannot be asked.
    """
    try:
        ask_gateway(gateway, api_key, lambda ask: _show(ask, once, as_json, every))
    except KeyboardInterrupt:
        pass


async def _show(ask: Ask, once: bool, as_json: bool, every: float) -> None:
    told = await ask("GET", PATH, None)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(told)).decode())
    elif once:
        console.print(screen(told))
    else:
        with Live(screen(told), console=console, screen=True, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(every)
                live.update(screen(await ask("GET", PATH, None)), refresh=True)


def screen(told: dict[str, Any]) -> Group:
    """All of it, from what the gateway tells."""
    totals = told["totals"]
    line = (
        f"memory (Pss): {_size(totals['all_bytes'])} = workers {_size(totals['workers_bytes'])} + contexts "
        f"{_size(totals['contexts_bytes'])} + owner of weights {_size(totals['owner_bytes'])}"
    )
    tables = (_services(told), _workers(told), _weights(told), _contexts(told))
    return Group(*(table for table in tables if table.row_count), Text(line))


def _services(told: dict[str, Any]) -> Table:
    table = Table("service", "kind", "stage", "ready", "references", "next request pays", "returns took (median)")
    for one in told["services"]:
        took = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in one["return_s"].items())
        pays = " beside ".join(one["pays"]) or ("nothing" if one["ready"] else "a start")
        table.add_row(
            one["name"], one["kind"], one["stage"], str(one["ready"]), str(one["references"]), pays, took
        )  # fmt: skip
    return table


def _workers(told: dict[str, Any]) -> Table:
    table = Table("worker", "pid", "Pss", "private", "shared")
    for one in told["workers"]:
        memory = one["memory"] or {}
        sizes = [_size(memory.get(name)) for name in ("pss", "private", "shared")]
        table.add_row(one["replica"], str(one["pid"]), *sizes)
    return table


def _weights(told: dict[str, Any]) -> Table:
    held, rate = told["weights"], told["hit_rate"]
    table = Table(_long("weights"), "on", "state", "size", "references", "hits", "restore")
    if held is not None:
        share = f", hit rate {rate:.0%}" if rate is not None else ""
        uploads = f", copies to devices {held['uploads']}" if held["uploads"] else ""
        table.caption = f"owner {held['pid']}: loads {held['loads']}, hits {held['hits']}{share}{uploads}"
    for one in held["entries"] if held else ():
        table.add_row(
            _end(one["source"]), _end(one["device"] or "host", 16), one["state"], _size(one["bytes"]),
            str(one["references"]), str(one["hits"]), f"{one['restore_s']:.3f} s",
        )  # fmt: skip
    return table


def _contexts(told: dict[str, Any]) -> Table:
    table = Table(_long("context"), "pid", "workers", "forks", "imports took", "last fork", "idle", "Pss")
    for one in told["contexts"]:
        table.add_row(
            ", ".join(one["imports"]) or "nothing but ours", str(one["pid"]), str(one["workers"]), str(one["forks"]),
            _seconds(one["import_s"]), _seconds(one["last_fork_s"]), _seconds(one["idle_s"]), _size(one["pss_bytes"]),
        )  # fmt: skip
    return table


def _long(head: str) -> Column:
    """Of values that are told in full on several lines rather than cut."""
    return Column(head, overflow="fold")


def _end(source: str, most: int = 48) -> str:
    return source if len(source) <= most else "…" + source[1 - most :]


def _size(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:,.1f} MiB"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.1f} s"
