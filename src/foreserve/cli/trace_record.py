"""`foreserve trace record`: a live server's requests, written as a trace."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path
from typing import IO, Annotated, Any, Final

import aiohttp
import msgspec
import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from foreserve.cli.bench_options import check_writable
from foreserve.cli.ending import wrong
from foreserve.cli.trace_words import console
from foreserve.errors import ConfigError, ForeserveError
from foreserve.network import fault
from foreserve.plural import counted
from foreserve.traces.files import MAX_LINE_BYTES
from foreserve.traces.own import open_own, write_rows
from foreserve.traces.row import Lost

PATH: Final = "/v1/foreserve/trace"
EXIT_BROKEN: Final = 1
"""The recording was broken off; what came until then is written."""

CONNECT_S: Final = 10.0

_lost = msgspec.json.Decoder(Lost)


class Written(msgspec.Struct):
    """How far a recording has come. `broken` says why it ended before it was over, in words."""

    rows: int = 0
    lost: int = 0
    broken: str = ""


def record(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="JSONL", help="The trace to write, perhaps .xz or .gz.")],
    url: Annotated[str, typer.Option(help="The server's address.")] = "http://127.0.0.1:8000",
    minutes: Annotated[
        float | None,
        typer.Option(help="Record arrivals of so many minutes, to the end of each. Without it: until Ctrl-C."),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Prompts and answers too; the server's settings must allow it.")
    ] = False,
    api_key: Annotated[
        str | None, typer.Option(envvar="FORESERVE_API_KEY", help="The key to show, where the server wants one.")
    ] = None,
    block_tokens: Annotated[
        int, typer.Option(min=16, max=65_536, help="Tokens of a prompt that one prefix hash stands for.")
    ] = 32,
) -> None:
    """Record what a server is asked and how it went: times, lengths, tenants, hashes of shared prefixes; no text.

    Ctrl-C ends it; requests that are open then are not in it. The server's end ends it too. Example:
    `foreserve trace record --minutes 60 -o monday.jsonl`.

    Exit status: 0; 1 when it was broken off; 2 when it could not begin or be written.
    """
    part = out.with_name(f".{out.name}.recording")
    try:
        check_writable(out)
        if part.exists():
            raise ConfigError(f"{part} is of a recording that was not finished; {_rescue(part, out)}, or delete it")
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--url: {url!r} must start with http:// or https://")
        if minutes is not None and not minutes > 0:
            raise ConfigError(f"--minutes is {minutes}; it must be above 0")
        asked = {"block_tokens": str(block_tokens)}
        if text:
            asked["text"] = "1"
        if minutes is not None:
            asked["seconds"] = str(minutes * 60.0)
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        written = asyncio.run(_record(url.rstrip("/").removesuffix("/v1") + PATH, asked, headers, part, out))
        _finish(part, out, written)
    except ForeserveError as error:
        wrong(str(error))
    console.print(f"{out}: {counted(written.rows, 'request')}", soft_wrap=True)
    if written.lost:
        console.print(f"{written.lost:,} more came and are missing: too many at once, or malformed", style="yellow")
    if written.broken:
        console.print(f"the recording was broken off: {written.broken}", style="yellow", soft_wrap=True, markup=False)
        raise typer.Exit(EXIT_BROKEN)


def _finish(part: Path, out: Path, written: Written) -> None:
    """Rows came as requests ended; a trace has them as they arrived. What came stays until all of it is written."""
    try:
        trace = open_own(part, skip_bad=True, sort=True)
        rows = iter(trace)
        first = next(rows, None)  # all of them have been read when the first comes, in order
        written.lost += trace.skipped
        header = msgspec.structs.replace(trace.header, lost=written.lost)
        written.rows = write_rows(out, header, chain([] if first is None else [first], rows))
    except (ForeserveError, OSError, KeyboardInterrupt) as error:
        why = str(error) or "it was interrupted"
        raise ConfigError(f"{why}; what was recorded is in {part}: {_rescue(part, out)}") from None
    part.unlink()


def _rescue(part: Path, out: Path) -> str:
    return f"make a trace of it with `foreserve trace convert --sort --skip-bad {part} -o {out}`"


async def _record(url: str, asked: dict[str, str], headers: dict[str, str], part: Path, out: Path) -> Written:
    """Write what comes to `part`, which becomes `out`, until it ends or Ctrl-C. Raises ConfigError."""
    stop = asyncio.Event()
    for ends in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(ends, stop.set)
    timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_S)
    written = Written()
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, read_bufsize=2**20) as session,
            session.get(url, params=asked, headers=headers) as answer,
        ):
            if answer.status != 200:
                raise ConfigError(f"{url}: {answer.status}: {_refusal(await answer.read())}")
            with part.open("wb") as file, _bar(written) as show:
                reading = asyncio.create_task(_write(answer, file, written, show))
                stopping = asyncio.create_task(stop.wait())
                await asyncio.wait([reading, stopping], return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reading
    except aiohttp.ClientError as error:
        raise ConfigError(f"{url}: cannot be reached: {fault(error)}") from None
    except OSError as error:
        kept = f"; what came before is in it: {_rescue(part, out)}" if written.rows else ""
        raise ConfigError(f"{part}: cannot be written: {error.strerror or error}{kept}") from None
    return written


async def _write(answer: aiohttp.ClientResponse, file: IO[bytes], written: Written, show: Any) -> None:
    try:
        async for line in _lines(answer):
            if line.startswith(b'{"foreserve_trace":"lost"'):
                written.lost += _lost.decode(line).rows
                continue
            written.rows += not line.startswith(b'{"foreserve_trace"')
            file.write(line + b"\n")
            show()
    except (aiohttp.ClientError, TimeoutError) as error:
        written.broken = fault(error)
    except msgspec.MsgspecError as error:
        written.broken = f"what came is no recording: {error}"


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole lines alone: what a broken connection left half is dropped."""
    held = bytearray()
    async for some in answer.content.iter_any():
        held += some
        *whole, rest = held.split(b"\n")
        held = bytearray(rest)
        if len(held) > MAX_LINE_BYTES:
            raise aiohttp.ClientPayloadError(f"a line of over {MAX_LINE_BYTES} bytes")
        for line in whole:
            if line:
                yield bytes(line)


@contextlib.contextmanager
def _bar(written: Written) -> Any:
    columns = (SpinnerColumn(), TextColumn("recording"), TextColumn("{task.completed:,} requests"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("recording", total=None)
        yield lambda: bars.update(task, completed=written.rows)


def _refusal(body: bytes) -> str:
    """The server's own words, where it has any."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
