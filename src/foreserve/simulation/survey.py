"""A trace read once before it is played: whether it can be, how long it is, and how it went live where it tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import msgspec

from foreserve.core import OutcomeKind
from foreserve.simulation.histogram import Distribution, Histogram
from foreserve.simulation.lengths import Lengths
from foreserve.simulation.tally import MOST_NAMES
from foreserve.simulation.windows import Windows, width_for
from foreserve.traces.row import Trace, TraceRow
from foreserve.traces.scaling import between

PROGRESS_EVERY: Final = 4096

MOST_TENANTS: Final = 100_000
"""Tenants whose requests are counted, to find those that asked most often."""
MOST_DEADLINES: Final = 2
"""Enough to know that they differ."""

FIRST_WIDTH_S: Final = 0.1
"""Of the windows of a trace whose length is not known yet."""

LONG_BEFORE_S: Final = 3600.0
"""A trace in which nothing comes for longer than this at first begins with what comes."""


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies (seconds) of live requests by their arrival, in windows of `width_s` seconds; `None`: none was done."""

    width_s: float
    ttft_p50: list[float | None]
    ttft_p99: list[float | None]
    e2e_p50: list[float | None]
    e2e_p99: list[float | None]


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording says of itself, to hold a simulation against. Latencies are seconds, of requests that were done.

    `tpot` is from the first token to the end by the answer's length, as in a simulation. `good` were done within the
    deadline that their row has, or it has none; tokens are of what was done; `ended_s` is when the last one ended.
    """

    requests: int
    outcomes: dict[str, int]
    ttft: Distribution | None
    tpot: Distribution | None
    e2e: Distribution | None
    course: Course
    good: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    ended_s: float = 0.0


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """`services` are those that rows name; `None` is where they name none. `span_s` is the last arrival, `first_s` the
    first.

    `live` is what the trace tells of all its requests, `live_of` of those of each service that rows name. `lengths`
    knows those that a recording cannot tell, and is no part of what is told.
    """

    rows: int
    skipped: int
    span_s: float
    services: tuple[str | None, ...]
    live: Live | None
    live_of: dict[str, Live] = {}
    tenants: tuple[str, ...] = ()
    """Those that asked most often, most often first: who is told of by name in every run."""
    first_s: float = 0.0
    deadlines: tuple[float | None, ...] = ()
    """Those that rows have, the first few of them; `None` is where they have none."""
    lengths: Lengths = msgspec.field(default_factory=Lengths)

    def live_for(self, service: str, *, only: bool) -> Live | None:
        """Of one service; `only`: it is the only one, so that requests that name none are its own."""
        return self.live if only else self.live_of.get(service)

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: msgspec.to_builtins(getattr(self, name)) for name in self.__struct_fields__ if name != "lengths"}


def survey(trace: Trace, progress: Callable[[int], None] | None = None) -> Survey:
    """Read all of it. `progress` hears how many rows there were so far. Raises ConfigError where a row is wrong."""
    rows, first, last = 0, 0.0, 0.0
    heard: dict[str | None, _Heard] = {}
    deadlines: dict[float | None, None] = {}
    everything = _Heard()
    tenants: Counter[str] = Counter()
    lengths = Lengths()
    for row in trace:
        rows += 1
        if rows == 1:
            first = row.arrival
        lengths.hear(row)
        if len(deadlines) < MOST_DEADLINES:
            deadlines[row.deadline_s] = None
        last = row.arrival
        if row.tenant in tenants or len(tenants) < MOST_TENANTS:
            tenants[row.tenant] += 1
        if row.service not in heard:
            heard[row.service] = _Heard()
        if row.outcome is not None:
            everything.hear(row)
            heard[row.service].hear(row)
        if progress is not None and rows % PROGRESS_EVERY == 0:
            progress(rows)
    told = {name: each.told(rows, last) for name, each in heard.items() if name is not None}
    return Survey(
        rows=rows,
        skipped=trace.skipped,
        span_s=last,
        services=tuple(heard),
        live=everything.told(rows, last),
        live_of={name: live for name, live in told.items() if live is not None},
        tenants=tuple(name for name, _ in tenants.most_common(MOST_NAMES)),
        first_s=first,
        deadlines=tuple(deadlines),
        lengths=lengths,
    )


def begun(trace: Trace, progress: Callable[[int], None] | None = None) -> tuple[Trace, Survey]:
    """A trace whose first request comes long after its start (a part of a longer one), from that request on.

    Any other as it is; with what `survey` finds, and raises.
    """
    seen = survey(trace, progress)
    if seen.first_s <= LONG_BEFORE_S:
        return trace, seen
    trace = between(trace, seen.first_s)
    return trace, survey(trace, progress)


class _Heard:
    def __init__(self) -> None:
        self._outcomes: Counter[str] = Counter()
        self._ttft, self._tpot, self._e2e = Histogram(), Histogram(), Histogram()
        self._windows = Windows(FIRST_WIDTH_S)
        self._good = self._prompt_tokens = self._output_tokens = 0
        self._ended_s = 0.0

    def hear(self, row: TraceRow) -> None:
        assert row.outcome is not None
        self._outcomes[row.outcome] += 1
        self._ended_s = max(self._ended_s, row.arrival + (row.total_s or 0.0))
        if row.outcome != OutcomeKind.DONE.value:
            return
        self._good += row.deadline_s is None or row.total_s is None or row.total_s <= row.deadline_s
        self._prompt_tokens += row.input_tokens
        self._output_tokens += row.output_tokens
        window = self._windows.at(row.arrival)
        if row.first_s is not None:
            self._ttft.add(row.first_s)
            window.ttft.add(row.first_s)
        if row.total_s is not None:
            self._e2e.add(row.total_s)
            window.e2e.add(row.total_s)
            if row.first_s is not None and row.output_tokens > 1:
                self._tpot.add((row.total_s - row.first_s) / (row.output_tokens - 1))

    def told(self, rows: int, span_s: float) -> Live | None:
        if not self._outcomes:
            return None
        self._windows.widen(width_for(span_s, rows))
        windows = list(self._windows)
        return Live(
            requests=self._outcomes.total(),
            outcomes={kind.value: self._outcomes[kind.value] for kind in OutcomeKind},
            ttft=self._ttft.distribution(curve=160),
            tpot=self._tpot.distribution(curve=160),
            e2e=self._e2e.distribution(curve=160),
            course=Course(
                width_s=self._windows.width_s,
                ttft_p50=[each.ttft.quantile(0.5) for each in windows],
                ttft_p99=[each.ttft.quantile(0.99) for each in windows],
                e2e_p50=[each.e2e.quantile(0.5) for each in windows],
                e2e_p99=[each.e2e.quantile(0.99) for each in windows],
            ),
            good=self._good,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            ended_s=self._ended_s,
        )
