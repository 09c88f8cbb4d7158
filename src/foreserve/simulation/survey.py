"""A trace read once before it is played: whether it can be, how long it is, and how it went live where it tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

from foreserve.core import OutcomeKind
from foreserve.simulation.histogram import Distribution, Histogram
from foreserve.traces.row import Trace, TraceRow

PROGRESS_EVERY: Final = 4096


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording says of itself, to hold a simulation against. Latencies are seconds, of requests that were done.

    `tpot` is from the first token to the end by the answer's length, as in a simulation.
    """

    requests: int
    outcomes: dict[str, int]
    ttft: Distribution | None
    tpot: Distribution | None
    e2e: Distribution | None


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """`services` are those that rows name; `None` is where they name none. `span_s` is the last arrival."""

    rows: int
    skipped: int
    span_s: float
    services: tuple[str | None, ...]
    live: Live | None


def survey(trace: Trace, progress: Callable[[int], None] | None = None) -> Survey:
    """Read all of it. `progress` hears how many rows there were so far. Raises ConfigError where a row is wrong."""
    rows, last = 0, 0.0
    services: dict[str | None, None] = {}
    live = _Heard()
    for row in trace:
        rows += 1
        last = row.arrival
        services[row.service] = None
        if row.outcome is not None:
            live.hear(row)
        if progress is not None and rows % PROGRESS_EVERY == 0:
            progress(rows)
    return Survey(rows=rows, skipped=trace.skipped, span_s=last, services=tuple(services), live=live.told())


class _Heard:
    def __init__(self) -> None:
        self._outcomes: Counter[str] = Counter()
        self._ttft, self._tpot, self._e2e = Histogram(), Histogram(), Histogram()

    def hear(self, row: TraceRow) -> None:
        assert row.outcome is not None
        self._outcomes[row.outcome] += 1
        if row.outcome != OutcomeKind.DONE.value:
            return
        if row.first_s is not None:
            self._ttft.add(row.first_s)
        if row.total_s is not None:
            self._e2e.add(row.total_s)
            if row.first_s is not None and row.output_tokens > 1:
                self._tpot.add((row.total_s - row.first_s) / (row.output_tokens - 1))

    def told(self) -> Live | None:
        if not self._outcomes:
            return None
        return Live(
            requests=self._outcomes.total(),
            outcomes={kind.value: self._outcomes[kind.value] for kind in OutcomeKind},
            ttft=self._ttft.distribution(curve=160),
            tpot=self._tpot.distribution(curve=160),
            e2e=self._e2e.distribution(curve=160),
        )
