"""What a trace is like, in one pass and bounded memory: rates, burstiness, lengths, tenants, prefixes, latencies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec

from foreserve.traces.histogram import Histogram, Named, SeenBefore, Timeline
from foreserve.traces.row import Trace, TraceRow

MINUTE_S: Final = 60.0


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A quantity over all requests that have it. `cdf` has (value, share of requests up to it), at most 200 points."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    most: float
    cdf: list[tuple[float, float]]


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over bins of `width_s` seconds from arrival 0 on."""

    width_s: float
    requests: list[float]
    input_tokens: list[float]
    output_tokens: list[float]


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Times are seconds, lengths tokens. `lost` is how many more came while it was recorded and are not in it.

    `rate` is requests a second from the first to the last. `gap_cv` is the coefficient of variation of the gaps between
    them (1: Poisson; above: bursty). `peak_minute` is the busiest minute's rate over the mean rate. `prefix_blocks` are
    whole blocks of prompts that the trace has hashes of, and `prefix_seen` the share of them that had come before;
    `prefix_seen_tokens` is that in tokens over all input tokens. `first_s` and `total_s` are what a recording
    tells of latency. `None` stands where there is nothing to tell from.
    """

    name: str
    epoch: float
    requests: int
    skipped: int
    lost: int
    duration_s: float
    rate: float | None
    gap_cv: float | None
    peak_minute: float | None
    input_tokens: Spread | None
    output_tokens: Spread | None
    seconds: Spread | None
    first_s: Spread | None
    total_s: Spread | None
    tenants: dict[str, int]
    services: dict[str, int]
    outcomes: dict[str, int]
    prefix_blocks: int
    prefix_seen: float | None
    prefix_seen_tokens: float | None
    series: Series


def statistics(trace: Trace) -> Statistics:
    """Of the whole trace. Raises ConfigError as reading it does."""
    pass_ = _Pass()
    pass_.read(trace)
    return pass_.result(trace)


class _Pass:
    def __init__(self) -> None:
        self.count = 0
        self.first = self.last = 0.0
        self.gap_mean = self.gap_squares = 0.0
        self.minute, self.in_minute, self.busiest = 0, 0, 0
        self.inputs, self.outputs, self.times = Histogram(), Histogram(), Histogram(1e6)
        self.firsts, self.totals = Histogram(1e6), Histogram(1e6)
        self.tenants, self.services, self.outcomes = Named(), Named(), Named()
        self.prefixes = SeenBefore()
        self.timeline = Timeline()

    def read(self, rows: Iterable[TraceRow]) -> None:
        for row in rows:
            self._when(row.arrival)
            if row.seconds is None or row.input_tokens or row.output_tokens:
                self.inputs.add(row.input_tokens)
                self.outputs.add(row.output_tokens)
            else:
                self.times.add(row.seconds)
            if row.first_s is not None:
                self.firsts.add(row.first_s)
            if row.total_s is not None:
                self.totals.add(row.total_s)
            self.tenants.add(row.tenant)
            self.services.add(row.service or "")
            if row.outcome is not None:
                self.outcomes.add(row.outcome)
            if row.prefix:
                self.prefixes.add(row.prefix)
            self.timeline.add(row.arrival, row.input_tokens, row.output_tokens)

    def _when(self, arrival: float) -> None:
        self.count += 1
        if self.count == 1:
            self.first = arrival
        else:
            gap = arrival - self.last
            off = gap - self.gap_mean
            self.gap_mean += off / (self.count - 1)
            self.gap_squares += off * (gap - self.gap_mean)
        self.last = arrival
        if (minute := int((arrival - self.first) // MINUTE_S)) != self.minute:
            self.minute, self.in_minute = minute, 0
        self.in_minute += 1
        self.busiest = max(self.busiest, self.in_minute)

    def result(self, trace: Trace) -> Statistics:
        span = self.last - self.first
        rate = (self.count - 1) / span if span > 0 else None
        gaps = self.count - 1
        cv = math.sqrt(self.gap_squares / gaps) / self.gap_mean if gaps > 1 and self.gap_mean > 0 else None
        seen, block = self.prefixes.share(), trace.header.block_tokens
        seen_tokens = None
        if seen is not None and self.inputs.total:
            seen_tokens = seen * self.prefixes.blocks * block / self.inputs.total
        return Statistics(
            name=trace.header.name,
            epoch=trace.header.epoch,
            requests=self.count,
            skipped=trace.skipped,
            lost=trace.header.lost,
            duration_s=span,
            rate=rate,
            gap_cv=cv,
            peak_minute=self.busiest / MINUTE_S / rate if rate and span >= MINUTE_S else None,
            input_tokens=_spread(self.inputs),
            output_tokens=_spread(self.outputs),
            seconds=_spread(self.times),
            first_s=_spread(self.firsts),
            total_s=_spread(self.totals),
            tenants=self.tenants.counts(),
            services={name: count for name, count in self.services.counts().items() if name},
            outcomes=self.outcomes.counts(),
            prefix_blocks=self.prefixes.blocks,
            prefix_seen=seen,
            prefix_seen_tokens=seen_tokens,
            series=Series(
                width_s=self.timeline.width_s,
                requests=self.timeline.sums[0],
                input_tokens=self.timeline.sums[1],
                output_tokens=self.timeline.sums[2],
            ),
        )


def _spread(values: Histogram) -> Spread | None:
    if not values.count:
        return None
    p50, p90, p99, most = values.quantiles((0.5, 0.9, 0.99, 1.0))
    return Spread(
        count=values.count,
        mean=values.total / values.count,
        p50=p50,
        p90=p90,
        p99=p99,
        most=most,
        cdf=values.cdf(200),
    )
