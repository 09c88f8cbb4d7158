"""A trace made of another: a part of it, more or fewer of its requests, faster or slower. All stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Final, Protocol, runtime_checkable

import msgspec

from foreserve.errors import ConfigError
from foreserve.traces.families import Families, uniforms
from foreserve.traces.row import Header, Trace, TraceRow

MOST_COPIES: Final = 10_000

_GOLDEN: Final = 0x9E3779B97F4A7C15
_HASH_BITS: Final = (1 << 63) - 1


@runtime_checkable
class Drawn(Protocol):
    """A trace that is drawn need not draw what is not wanted of it."""

    def kept(self, rate: float) -> Trace: ...
    def between(self, start: float, end: float) -> Trace: ...


class Derived:
    """A trace whose rows are made of another's each time it is read. Implements `Trace`."""

    def __init__(
        self, source: Trace, header: Header, make: Callable[[Iterator[TraceRow]], Iterator[TraceRow]], length: int
    ) -> None:
        self.header = header
        self.skipped = 0
        self._source = source
        self._make = make
        self._length = length

    def __iter__(self) -> Iterator[TraceRow]:
        try:
            yield from self._make(iter(self._source))
        finally:
            self.skipped = self._source.skipped

    def __len__(self) -> int:
        return self._length

    def __bool__(self) -> bool:
        return True


def scaled(
    trace: Trace,
    *,
    start: float = 0.0,
    end: float = math.inf,
    rate: float = 1.0,
    speed: float = 1.0,
    limit: int | None = None,
    seed: int = 0,
) -> Trace:
    """What is between `start` and `end`, `rate` times the requests, `speed` times as fast, and `limit` rows of that.

    In this order; see the functions of those names. Raises ConfigError for what cannot be.
    """
    if start != 0.0 or end != math.inf:
        trace = between(trace, start, end)
    if rate != 1.0:
        trace = kept(trace, rate, seed)
    if speed != 1.0:
        trace = sped(trace, speed)
    return trace if limit is None else limited(trace, limit)


def between(trace: Trace, start: float, end: float = math.inf) -> Trace:
    """The rows that come from second `start` on, which becomes arrival 0, and before second `end`."""
    if not 0.0 <= start < end:
        raise ConfigError(f"a part of a trace from {start:g} s to {end:g} s; valid: 0 or more, the end after the start")
    if isinstance(trace, Drawn):
        return trace.between(start, end)

    def make(rows: Iterator[TraceRow]) -> Iterator[TraceRow]:
        for row in rows:
            if row.arrival >= end:
                return
            if row.arrival >= start:
                yield msgspec.structs.replace(row, arrival=row.arrival - start)

    header = trace.header
    if header.epoch:
        header = msgspec.structs.replace(header, epoch=header.epoch + start)
    return Derived(trace, header, make, 0)


def sped(trace: Trace, speed: float) -> Trace:
    """The same requests `speed` times as fast: gaps shrink, deadlines and lengths stay."""
    if not 0.0 < speed < math.inf:
        raise ConfigError(f"speed is {speed}; it must be above 0")

    def make(rows: Iterator[TraceRow]) -> Iterator[TraceRow]:
        return (msgspec.structs.replace(row, arrival=row.arrival / speed) for row in rows)

    return Derived(trace, trace.header, make, len(trace))


def renamed(trace: Trace, to: str | None = None, names: Mapping[str, str] | None = None) -> Trace:
    """The same requests for other services: all of them for `to`, or those of a service in `names` for its new name."""

    def service(row: TraceRow) -> str | None:
        return to if to is not None else (names or {}).get(row.service or "", row.service)

    def make(rows: Iterator[TraceRow]) -> Iterator[TraceRow]:
        return (msgspec.structs.replace(row, service=service(row)) for row in rows)

    return Derived(trace, trace.header, make, len(trace))


def limited(trace: Trace, rows: int) -> Trace:
    """The first rows alone."""
    if rows < 1:
        raise ConfigError(f"limit is {rows}; it must be at least 1")
    return Derived(trace, trace.header, lambda all_of_it: islice(all_of_it, rows), min(len(trace) or rows, rows))


def kept(trace: Trace, rate: float, seed: int = 0) -> Trace:
    """`rate` times the requests over the same time, with the same rise and fall: the same for the same `seed`.

    Below 1 each request stays with that probability, those that share a prefix together (see `Families`): what a prefix
    cache saves stays nearly as it was. Above 1 each comes with copies (2.5: one, and by chance a second, again of all
    that share a prefix), at times drawn within the gap that follows it. A copy has its original's lengths and tenant.
    Its prefix is equal to those of copies of the same rank alone, as if so many populations of users were served.
    A trace that is drawn (ServeGen) is drawn at the new rate, as bursty as before.
    """
    if not 0.0 < rate <= MOST_COPIES:
        raise ConfigError(f"rate is {rate}; it must be above 0 and at most {MOST_COPIES} times the trace's")
    if isinstance(trace, Drawn):
        return trace.kept(rate)

    def make(rows: Iterator[TraceRow]) -> Iterator[TraceRow]:
        return _thinned(rows, rate, seed) if rate < 1.0 else _copied(rows, rate, seed)

    return Derived(trace, trace.header, make, round(len(trace) * rate))


def _thinned(rows: Iterator[TraceRow], rate: float, seed: int) -> Iterator[TraceRow]:
    families = Families(seed)
    return (row for row in rows if families.draw(row) < rate)


def _copied(rows: Iterator[TraceRow], rate: float, seed: int) -> Iterator[TraceRow]:
    families, draws = Families(seed), uniforms(seed, 1)
    whole, part = divmod(rate, 1.0)
    gap = 0.0
    row = next(rows, None)
    while row is not None:
        after = next(rows, None)
        if after is not None:
            gap = after.arrival - row.arrival  # the last one's copies come within the gap before it
        copies = int(whole) - 1 + (families.draw(row) < part)
        yield row
        for rank, at in enumerate(sorted(row.arrival + gap * next(draws) for _ in range(copies)), 1):
            yield msgspec.structs.replace(row, arrival=at, prefix=_others(row.prefix, rank))
        row = after


def _others(prefix: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The same prefixes of other users: equal to each other as before, to nobody else's."""
    mask = (rank * _GOLDEN) & _HASH_BITS
    return tuple(block ^ mask for block in prefix)
