"""The figures of a run from its results. Pure; every definition is in docs/metrics.md.

Latencies are in seconds. The measured window starts when the first measured request is due and ends with the last
measured end; measured are the requests that are not warm-up. Latencies are of requests that were done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np

from foreserve.errors import ConfigError
from foreserve.loadgen.records import Ending, Result


class WarmUp(msgspec.Struct, frozen=True):
    """What is left out of the figures: the first `requests`, and those due in the first `seconds`."""

    requests: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for value in (self.requests, self.seconds):
            if not value >= 0:
                raise ConfigError(f"warm-up is {value}; it must be at least 0")

    def excludes(self, result: Result) -> bool:
        """Whether the request is warm-up."""
        return result.index < self.requests or result.due < self.seconds


class Targets(msgspec.Struct, frozen=True, kw_only=True):
    """What a good answer keeps, in seconds; `None` asks nothing. A target that could not be measured is missed."""

    e2e: float | None = None
    ttft: float | None = None
    tpot: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("e2e", self.e2e), ("ttft", self.ttft), ("tpot", self.tpot)):
            if value is not None and not value > 0:
                raise ConfigError(f"the {name} target is {value} s; it must be above 0")

    def met(self, result: Result) -> bool:
        """Whether the request was done and kept every target; an answer of one token has no TPOT to miss."""
        if result.ending is not Ending.DONE:
            return False
        if self.e2e is not None and e2e(result) > self.e2e:
            return False
        if self.ttft is not None and not _within(ttft(result), self.ttft):
            return False
        return self.tpot is None or (result.streamed and (result.output_tokens < 2 or _within(tpot(result), self.tpot)))


class Distribution(msgspec.Struct, frozen=True):
    """Percentiles (linear between ranks), mean and extremes of `n` values. Seconds, unless said otherwise."""

    n: int
    mean: float
    p50: float
    p90: float
    p99: float
    min: float
    max: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A run in figures. Rates are per second of the window; `None` is what could not be measured."""

    requests: int
    warm_up: int
    window_s: float
    done: int
    endings: dict[str, int]
    statuses: dict[str, int]
    attempts: int
    offered_per_s: float
    requests_per_s: float
    output_tokens: int
    output_tokens_per_s: float
    prompt_tokens: int
    prompt_tokens_per_s: float
    good: int
    good_fraction: float
    goodput_per_s: float
    ttft: Distribution | None
    tpot: Distribution | None
    itl: Distribution | None
    e2e: Distribution | None
    refused_attempts: int
    refusal: Distribution | None
    lag: Distribution | None
    tokens_per_event: float | None
    counted: int
    unstreamed: int


def ttft(result: Result) -> float | None:
    """From the first send to the first output; retries count, since the client waited for them."""
    return None if result.first is None else result.first - result.sent


def e2e(result: Result) -> float:
    """From the first send to the end of the answer."""
    return result.ended - result.sent


def tpot(result: Result) -> float | None:
    """Time per output token after the first: (end - first output) / (tokens - 1)."""
    if result.first is None or result.output_tokens < 2:
        return None
    return (result.ended - result.first) / (result.output_tokens - 1)


def distribution(values: Sequence[float]) -> Distribution | None:
    """Of at least one value, else `None`."""
    if not len(values):
        return None
    data = np.asarray(values, dtype=float)
    p50, p90, p99 = np.percentile(data, (50, 90, 99)).tolist()
    return Distribution(len(data), float(data.mean()), p50, p90, p99, float(data.min()), float(data.max()))


def summarise(results: Iterable[Result], targets: Targets | None = None, warm_up: WarmUp | None = None) -> Summary:
    """All figures of the results that are not warm-up."""
    targets = targets or Targets()
    warm_up = warm_up or WarmUp()
    everything = list(results)
    measured = [result for result in everything if not warm_up.excludes(result)]
    done = [result for result in measured if result.ending is Ending.DONE]
    good = sum(targets.met(result) for result in measured)
    window = max(r.ended for r in measured) - min(r.due for r in measured) if measured else 0.0
    tokens = sum(result.output_tokens for result in done)
    prompt_tokens = sum(result.prompt_tokens or 0 for result in done)
    gaps = [np.diff(result.output_times) for result in done if len(result.output_times) > 1]
    refusals = [a.seconds for r in measured for a in r.attempts if a.status in (429, 503)]
    exact = [result for result in done if not result.counted and result.output_times]
    events = sum(len(result.output_times) for result in exact)

    def rate(amount: float) -> float:
        return amount / window if window > 0 else 0.0

    return Summary(
        requests=len(measured),
        warm_up=len(everything) - len(measured),
        window_s=window,
        done=len(done),
        endings=dict(sorted(Counter(result.ending.value for result in measured).items())),
        statuses=dict(sorted(Counter(str(a.status or "none") for r in measured for a in r.attempts).items())),
        attempts=sum(len(result.attempts) for result in measured),
        offered_per_s=_offered(measured),
        requests_per_s=rate(len(done)),
        output_tokens=tokens,
        output_tokens_per_s=rate(tokens),
        prompt_tokens=prompt_tokens,
        prompt_tokens_per_s=rate(prompt_tokens),
        good=good,
        good_fraction=good / len(measured) if measured else 0.0,
        goodput_per_s=rate(good),
        ttft=_of(done, ttft),
        tpot=_of(done, tpot),
        itl=distribution(np.concatenate(gaps).tolist()) if gaps else None,
        e2e=_of(done, e2e),
        refused_attempts=len(refusals),
        refusal=distribution(refusals),
        lag=distribution([result.sent - result.due for result in measured]),
        tokens_per_event=sum(r.output_tokens for r in exact) / events if events else None,
        counted=sum(result.counted for result in done),
        unstreamed=sum(not result.streamed for result in done),
    )


def _of(results: Iterable[Result], figure: Callable[[Result], float | None]) -> Distribution | None:
    return distribution([value for result in results if (value := figure(result)) is not None])


def _within(value: float | None, bound: float) -> bool:
    return value is not None and value <= bound


def _offered(measured: Sequence[Result]) -> float:
    """Arrivals a second between the first and the last that was due."""
    if len(measured) < 2:
        return 0.0
    dues = [result.due for result in measured]
    span = max(dues) - min(dues)
    return (len(dues) - 1) / span if span > 0 else 0.0
