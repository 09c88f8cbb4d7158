"""What came before a simulation: the first part of a trace, from which loads and lengths are learned and no more.

A forecaster needs days of history, and nobody wants to wait until those have been played.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from foreserve.clock import wall
from foreserve.core import Outcome, OutcomeKind
from foreserve.errors import ConfigError
from foreserve.running import Running
from foreserve.scaling import Window
from foreserve.services.foreseen import tokens_cost
from foreserve.simulation.twin import Twin
from foreserve.traces.row import Trace, TraceRow
from foreserve.traces.scaling import between

MOST_LEARNED: Final = 20_000
"""Rows from whose answers lengths are learned: the last ones before the simulation begins."""

_BLOCK: Final = 256


@dataclass(frozen=True)
class Past:
    """The `span_s` seconds before a simulation. Arrivals of its trace are from the beginning of that time on."""

    trace: Trace
    span_s: float

    async def learned_by(self, running: Running, twins: Mapping[str, Twin], block_tokens: int) -> None:
        """By everything that learns, of the services of an app that has started: the past ends now."""
        first = next(iter(twins))
        for name in twins:
            scaling = running.services[name].scaling
            if scaling is not None:
                scaling.load.take_up(self.windows(name, first, twins[name].settings.scaling.window_s, wall()))
        await self.teach(twins, block_tokens)

    def windows(self, service: str, first: str, window_s: float, end: float) -> list[Window]:
        """What came to one service, in whole windows; those that name none were for the `first`. It ends at `end`.

        Each begins at a multiple of `window_s`; both are seconds since the epoch.
        """
        begin = end - self.span_s
        found: dict[int, dict[str, float]] = {}
        for row in self._rows():
            if (row.service or first) != service:
                continue
            amounts = found.setdefault(int((begin + row.arrival) // window_s), dict.fromkeys(_MEASURES, 0.0))
            amounts["requests"] += 1.0
            amounts["input_tokens"] += row.input_tokens
            amounts["output_tokens"] += row.output_tokens
        nothing = dict.fromkeys(_MEASURES, 0.0)
        whole = range(-int(-begin // window_s), int(end // window_s))
        return [Window(at=at * window_s, window_s=window_s, amounts=found.get(at, nothing)) for at in whole]

    async def teach(self, twins: Mapping[str, Twin], block_tokens: int) -> None:
        """Each service learns the lengths of its last answers, as if they had ended just now."""
        first = next(iter(twins))
        last: dict[str, deque[TraceRow]] = {name: deque(maxlen=MOST_LEARNED) for name in twins}
        for row in self._rows():
            if (name := row.service or first) in last:
                last[name].append(row)
        for name, rows in last.items():
            twin, at = twins[name], 0
            while rows:
                block = [rows.popleft() for _ in range(min(_BLOCK, len(rows)))]
                payloads = [twin.payload(row, block_tokens) for row in block]
                for row, payload, about in zip(block, payloads, await twin.about(block, payloads), strict=True):
                    cost = tokens_cost(payload.prompt_tokens, payload.max_tokens)
                    twin.foreseer.price(f"past-{at}", about, cost, ramps=False)
                    twin.foreseer.settled(_done(name, f"past-{at}", row, min(row.output_tokens, payload.max_tokens)))
                    at += 1

    def _rows(self) -> Iterator[TraceRow]:
        for row in self.trace:
            if row.arrival >= self.span_s:
                return
            yield row


_MEASURES: Final = ("requests", "input_tokens", "output_tokens")


def parted(trace: Trace, span_s: float) -> tuple[Past, Trace]:
    """The first `span_s` seconds of a trace, and the rest of it. Raises ConfigError where there is no such part."""
    if not 0.0 < span_s < float("inf"):
        raise ConfigError(f"a history of {span_s:g} s; it must be above 0 and end within the trace")
    return Past(between(trace, 0.0, span_s), span_s), between(trace, span_s)


def _done(service: str, request_id: str, row: TraceRow, tokens: int) -> Outcome:
    """When it ended means nothing, and how long it took is not known: only how long its answer was."""
    return Outcome(
        id=request_id,
        service=service,
        kind=OutcomeKind.DONE,
        arrival=0.0,
        ended=0.0,
        first=0.0,
        finish="stop" if row.most_tokens is None or tokens < row.most_tokens else "length",
        tenant=row.tenant,
        usage={"output_tokens": float(tokens)},
    )
