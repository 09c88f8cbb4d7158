"""When requests are sent: drawn from a process, read from a trace, or as clients become free.

An arrival process is an iterator of `Arrival`s in order of time, in seconds since the start of the run. Drawn ones
are endless; the run bounds them. All of them are the same for the same generator state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

import msgspec
from numpy.random import Generator as Generator  # noqa: TID251 - the type of the generator that is passed in
from numpy.random import default_rng  # noqa: TID251 - the one place where a seed becomes a generator

from foreserve.errors import ConfigError
from foreserve.loadgen.files import lines

MAX_TRACE_ROWS = 1_000_000
_BLOCK = 1024


class Arrival(msgspec.Struct, frozen=True):
    """A request is due `at` seconds after the start. The lengths (tokens) are known of traces alone."""

    at: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None


class ClosedLoop(msgspec.Struct, frozen=True):
    """No arrival times: each of `clients` sends its next request when its last one has ended."""

    clients: int

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise ConfigError(f"clients is {self.clients}; it must be at least 1")


def generator(seed: int) -> Generator:
    """A generator of random numbers, the same for the same seed."""
    if seed < 0:
        raise ConfigError(f"seed is {seed}; it must be at least 0")
    return default_rng(seed)


def poisson(rate: float, rng: Generator) -> Iterator[Arrival]:
    """Independent arrivals, `rate` a second on average: gaps are exponential."""
    return gamma(rate, 1.0, rng)


def gamma(rate: float, cv: float, rng: Generator) -> Iterator[Arrival]:
    """Gaps from a gamma distribution with mean `1 / rate` seconds and coefficient of variation `cv`.

    `cv` 1 is Poisson; above 1 arrivals come in bursts, below 1 they are more even.
    """
    _positive("rate", rate)
    _positive("cv", cv)
    shape = 1.0 / cv**2
    return _summed(rng, shape, 1.0 / (rate * shape))


def _summed(rng: Generator, shape: float, scale: float) -> Iterator[Arrival]:
    at = 0.0
    while True:
        for gap in rng.gamma(shape, scale, _BLOCK).tolist():
            at += gap
            yield Arrival(at)


def constant(rate: float) -> Iterator[Arrival]:
    """One every `1 / rate` seconds, the first at once."""
    _positive("rate", rate)
    return (Arrival(index / rate) for index in _count())


def _count() -> Iterator[int]:
    index = 0
    while True:
        yield index
        index += 1


def trace(path: Path) -> list[Arrival]:
    """The arrivals of a trace file in order of time, the first at 0.

    A file whose name has `.csv` has a header `TIMESTAMP,ContextTokens,GeneratedTokens` (the Azure LLM traces) with
    times as dates or seconds; any other is JSONL with `arrival` (seconds) and perhaps `prompt_tokens` and
    `output_tokens`. Raises ConfigError that names the line.
    """
    parse = _csv if ".csv" in path.suffixes else _jsonl
    rows: list[Arrival] = []
    for number, row in parse(path):
        if len(rows) == MAX_TRACE_ROWS:
            raise ConfigError(f"{path}: line {number}: more than {MAX_TRACE_ROWS} arrivals")
        rows.append(row)
    if not rows:
        raise ConfigError(f"{path}: no arrivals")
    rows.sort(key=lambda row: row.at)
    start = rows[0].at
    return [msgspec.structs.replace(row, at=row.at - start) for row in rows]


def scaled(rows: Iterable[Arrival], speed: float) -> Iterator[Arrival]:
    """The same arrivals `speed` times as fast."""
    _positive("rate scale", speed)
    return (msgspec.structs.replace(row, at=row.at / speed) for row in rows)


def mean_rate(rows: list[Arrival]) -> float:
    """Arrivals a second over the whole of a trace. Raises ConfigError when all come at one time."""
    span = rows[-1].at - rows[0].at
    if span <= 0:
        raise ConfigError("the trace's arrivals are all at one time: it has no rate to scale")
    return (len(rows) - 1) / span


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name} is {value}; it must be above 0")


_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def _csv(path: Path) -> Iterator[tuple[int, Arrival]]:
    columns: list[str] | None = None
    for number, text in lines(path):
        cells = [cell.strip() for cell in text.split(",")]
        if columns is None:
            columns = cells
            if columns[: len(_COLUMNS)] != list(_COLUMNS):
                raise ConfigError(f"{path}: line {number}: columns are {text!r}; expected {','.join(_COLUMNS)}")
            continue
        if len(cells) < len(_COLUMNS):
            raise ConfigError(f"{path}: line {number}: {len(cells)} columns; expected {len(_COLUMNS)}")
        try:
            yield number, Arrival(_seconds(cells[0]), int(cells[1]), int(cells[2]))
        except ValueError as error:
            raise ConfigError(f"{path}: line {number}: {error}") from None


def _seconds(text: str) -> float:
    """A number, or a date as seconds since 1970; dates without a zone are taken as one zone throughout."""
    try:
        value = float(text)
    except ValueError:
        return (datetime.fromisoformat(text).replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()
    if not math.isfinite(value):
        raise ValueError(f"time is {text}; expected a finite number")
    return value


class _Row(msgspec.Struct):
    arrival: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None


def _jsonl(path: Path) -> Iterator[tuple[int, Arrival]]:
    decoder = msgspec.json.Decoder(_Row)
    for number, text in lines(path):
        try:
            row = decoder.decode(text)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path}: line {number}: {error}") from None
        yield number, Arrival(row.arrival, row.prompt_tokens, row.output_tokens)
