"""The words of `foreserve trace` turned into a trace, and a progress bar for reading it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from foreserve.errors import ConfigError
from foreserve.traces.open import FORMATS, open_trace
from foreserve.traces.row import Trace, TraceRow
from foreserve.traces.scaling import renamed, scaled

console = Console(stderr=True)

TELL_EVERY: Final = 2048
"""Rows between two turns of the progress bar."""

_READING, _SCALING = "Reading", "Part and scale"
_TIME: Final = re.compile(r"(\d+(?:\.\d*)?)\s*(s|min|h|d)?")
_UNITS: Final = {None: 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}

TraceFile = Annotated[
    Path, typer.Argument(metavar="TRACE", help="The trace, perhaps .xz or .gz; of ServeGen a folder or .tar.xz.")
]
Format = Annotated[
    str, typer.Option("--format", help=f"auto (by its content), {', '.join(FORMATS)}.", rich_help_panel=_READING)
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out and count malformed rows.", rich_help_panel=_READING)
]
Sort = Annotated[
    bool, typer.Option("--sort", help="Rows are in any order: sort them first, on disk.", rich_help_panel=_READING)
]
PerSecond = Annotated[
    float | None,
    typer.Option(help="Requests a second, for lengths without arrivals (vidur).", rich_help_panel=_READING),
]
From = Annotated[
    str,
    typer.Option("--from", help="Begin at this time of the trace: 90, 90s, 15min, 6h, 7d.", rich_help_panel=_SCALING),
]
To = Annotated[str | None, typer.Option("--to", help="End before this time of the trace.", rich_help_panel=_SCALING)]
Rate = Annotated[
    float, typer.Option(help="Keep this many times the requests: drawn copies, or fewer.", rich_help_panel=_SCALING)
]
Speed = Annotated[float, typer.Option(help="Play it this many times as fast.", rich_help_panel=_SCALING)]
Limit = Annotated[int | None, typer.Option(help="Only so many requests.", rich_help_panel=_SCALING)]
Service = Annotated[
    str | None,
    typer.Option(help="All requests are for this service, whatever the trace says.", rich_help_panel=_READING),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="NAME=SERVICE",
        help="Requests for NAME (a gateway's model, say) are for SERVICE. May be repeated.",
        rich_help_panel=_READING,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of all that is drawn.", rich_help_panel=_SCALING)]


def read(
    file: Path,
    format: str,
    skip_bad: bool,
    sort: bool,
    per_second: float | None,
    start: str,
    end: str | None,
    rate: float,
    speed: float,
    limit: int | None,
    seed: int,
    service: str | None = None,
    maps: Sequence[str] = (),
) -> Trace:
    """The trace that these options mean. Raises ConfigError."""
    names = _names(service, maps)
    trace = open_trace(file, format=format, skip_bad=skip_bad, rate=per_second, seed=seed, sort=sort)
    trace = scaled(
        trace,
        start=seconds("--from", start),
        end=math.inf if end is None else seconds("--to", end),
        rate=rate,
        speed=speed,
        limit=limit,
        seed=seed,
    )
    # Last: what is drawn is cut and scaled by drawing it so.
    return renamed(trace, service, names) if service is not None or names else trace


def _names(service: str | None, maps: Sequence[str]) -> dict[str, str]:
    if service is not None and maps:
        raise ConfigError("--service is for all requests and --map for those of some names; valid: one of the two")
    if service == "":
        raise ConfigError("--service: expected the name of a service")
    names: dict[str, str] = {}
    for each in maps:
        name, equals, to = each.rpartition("=")
        if not equals or not name or not to:
            raise ConfigError(f"--map {each}: write NAME=SERVICE, as in --map gpt-4o=chat")
        names[name] = to
    return names


def seconds(option: str, text: str) -> float:
    """A time as `90`, `90s`, `15min`, `6h` or `7d`. Raises ConfigError naming the option."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{option}: {text!r} is no time; valid: 90, 90s, 15min, 6h, 7d")
    return float(match[1]) * _UNITS[match[2]]


class Watched:
    """A trace that moves a bar while it is read. Implements `Trace`."""

    def __init__(self, trace: Trace, bars: Progress, what: str) -> None:
        self.header = trace.header
        self.skipped = 0
        self._trace = trace
        self._bars = bars
        self._task = bars.add_task(what, total=len(trace) or None)

    def __iter__(self) -> Iterator[TraceRow]:
        count = 0
        for row in self._trace:
            count += 1
            if count % TELL_EVERY == 0:
                self._bars.update(self._task, completed=count)
            yield row
        self.skipped = self._trace.skipped
        self._bars.update(self._task, completed=count, total=count)

    def __len__(self) -> int:
        return len(self._trace)


@contextmanager
def watching(trace: Trace, what: str) -> Iterator[Watched]:
    """The trace with a progress bar on standard error, which goes when the block ends."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield Watched(trace, bars, what)
