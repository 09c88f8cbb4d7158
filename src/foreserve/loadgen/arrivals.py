"""When requests are sent: drawn from a process, read from a trace, or as clients become free.

An arrival process is an iterator of `Arrival`s in order of time, in seconds since the start of the run. Drawn ones
are endless; the run bounds them. All of them are the same for the same generator state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from numpy.random import Generator as Generator  # noqa: TID251 - the type of the generator that is passed in
from numpy.random import default_rng  # noqa: TID251 - the one place where a seed becomes a generator

from foreserve.errors import ConfigError
from foreserve.traces.open import open_trace

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
    """The arrivals of a trace file of any format that `open_trace` knows, in order of time, the first at 0.

    Raises ConfigError that names the line.
    """
    rows: list[Arrival] = []
    start = 0.0
    for row in open_trace(path):
        if len(rows) == MAX_TRACE_ROWS:
            raise ConfigError(f"{path}: more than {MAX_TRACE_ROWS} arrivals")
        if not rows:
            start = row.arrival
        # A trace whose rows name no length has 0 there.
        rows.append(Arrival(row.arrival - start, row.input_tokens or None, row.output_tokens or None))
    if not rows:
        raise ConfigError(f"{path}: no arrivals")
    return rows


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
