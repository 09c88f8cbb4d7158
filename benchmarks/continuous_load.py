"""One load of the continuous benchmark: requests with deadlines of their own, sent and measured."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import uvloop

from benchmarks.mixes import Ask
from foreserve.loadgen.arrivals import Arrival, ClosedLoop, generator, poisson
from foreserve.loadgen.client import Client, ClientOptions
from foreserve.loadgen.prompts import Prompt
from foreserve.loadgen.records import Ending, Result
from foreserve.loadgen.run import Limits, Run, run

T = TypeVar("T")

MARGIN_S = 1.0
FACTOR = 2.0
"""A deadline is this many times the unloaded time, unless another factor is chosen, and `MARGIN_S` more."""


class Unloaded(msgspec.Struct, frozen=True):
    """Seconds that a request takes on an idle server: fixed, for each prompt token and for each output token."""

    fixed: float
    per_prompt_token: float
    per_output_token: float

    def seconds(self, ask: Ask) -> float:
        """By the request's true lengths."""
        return self.fixed + self.per_prompt_token * ask.prompt_tokens + self.per_output_token * ask.output_tokens

    def deadline(self, ask: Ask, factor: float = FACTOR) -> float:
        """Seconds from its arrival. It tells something of the length to a policy that would look for it there."""
        return factor * self.seconds(ask) + MARGIN_S


def fit(alone: Sequence[tuple[Ask, Result]]) -> Unloaded:
    """By least squares over requests that were answered one after the other."""
    rows = np.array([[1.0, ask.prompt_tokens, ask.output_tokens] for ask, _ in alone])
    seconds = np.array([result.ended - result.sent for _, result in alone])
    fixed, prompt, output = np.maximum(np.linalg.lstsq(rows, seconds, rcond=None)[0], 0.0).tolist()
    return Unloaded(fixed, prompt, output)


class Load(msgspec.Struct, frozen=True):
    """`requests` of a mix as a Poisson process of `rate` a second, both drawn with `seed`; `factor` is of deadlines."""

    rate: float
    requests: int
    seed: int
    factor: float = FACTOR


class Trial(msgspec.Struct, frozen=True):
    """What came of a load. Latencies are in seconds since a request was due, of those done.

    `done` has the same by each request's place, so that two sides can be compared in what both have done. `capped_s`
    has all requests, those that were not done with their deadline.
    """

    latency_s: list[float]
    done: dict[int, float]
    capped_s: list[float]
    tenants: dict[str, list[float]]
    good: int
    done_share: dict[str, float]
    sending_s: float
    tokens_per_s: float
    endings: dict[str, int]

    @property
    def goodput_per_s(self) -> float:
        """Requests done within their deadline, for each second of sending."""
        return self.good / self.sending_s

    @property
    def worst_tenant_p99_s(self) -> float:
        """The p99 latency of the tenant whose is highest; of requests that were done."""
        return max(float(np.percentile(latencies, 99)) for latencies in self.tenants.values() if latencies)

    def __str__(self) -> str:
        mean, p99 = np.mean(self.latency_s), np.percentile(self.latency_s, 99)
        rates = f"good {self.goodput_per_s:.2f}/s, {self.tokens_per_s:.0f} tokens/s"
        return f"mean {mean:.2f} p99 {p99:.2f} s, {rates}, {self.endings}"


class Due(Prompt, frozen=True, kw_only=True):
    """A prompt with its deadline."""

    slo_ms: float


class DueClient(Client):
    """Sends a prompt's deadline with it."""

    def body(self, prompt: Prompt, max_tokens: int | None = None) -> bytes:
        """As `Client`'s."""
        body = super().body(prompt, max_tokens)
        if not isinstance(prompt, Due):
            return body
        fields: dict[str, Any] = msgspec.json.decode(body)
        return msgspec.json.encode({**fields, "foreserve": {"slo_ms": prompt.slo_ms}})


def closed(
    url: str, asks: Sequence[Ask], clients: int, max_tokens: int, cores: Collection[int]
) -> list[tuple[Ask, Result]]:
    """Each request once, `clients` at a time, without deadlines. Raises RuntimeError when one is not done."""
    prompts = [ask.as_prompt() for ask in asks]
    results = send(url, prompts, ClosedLoop(clients), max_tokens, cores).results
    wrong = [result for result in results if result.ending is not Ending.DONE]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(results)} requests did not end well: {wrong[0].error}")
    pairs = [(asks[result.index], result) for result in results]
    if odd := next((pair for pair in pairs if pair[1].output_tokens != pair[0].output_tokens), None):
        raise RuntimeError(f"{odd[1].output_tokens} tokens came where {odd[0].output_tokens} are true")
    return pairs


def measure(
    url: str, asks: Sequence[Ask], load: Load, unloaded: Unloaded, max_tokens: int, cores: Collection[int]
) -> Trial:
    """An open loop with deadlines, run to empty."""
    deadlines = [unloaded.deadline(ask, load.factor) for ask in asks]
    prompts = [
        Due(messages=ask.messages, tenant=ask.tenant, slo_ms=1000 * deadline)
        for ask, deadline in zip(asks, deadlines, strict=True)
    ]
    outcome = send(url, prompts, poisson(load.rate, generator(load.seed)), max_tokens, cores)
    return trial_of(asks, deadlines, outcome)


def trial_of(asks: Sequence[Ask], deadlines: Sequence[float], outcome: Run) -> Trial:
    """The figures of a run of these requests; deadlines are in seconds since each was due."""
    tenants: dict[str, list[float]] = {ask.tenant: [] for ask in asks}
    latencies: dict[int, float] = {}
    capped, good, tokens = [], 0, 0.0
    for result in outcome.results:
        ask, deadline = asks[result.index], deadlines[result.index]
        if result.ending is not Ending.DONE:
            capped.append(deadline)
            continue
        latency = result.ended - result.due
        latencies[result.index] = latency
        capped.append(latency)
        tenants[ask.tenant].append(latency)
        good += latency <= deadline
        tokens += result.output_tokens * share_before(outcome.sending_s, result)
    counts = {tenant: sum(ask.tenant == tenant for ask in asks) for tenant in tenants}
    return Trial(
        latency_s=list(latencies.values()),
        done=latencies,
        capped_s=capped,
        tenants=tenants,
        good=good,
        done_share={tenant: len(done) / counts[tenant] for tenant, done in tenants.items()},
        sending_s=outcome.sending_s,
        tokens_per_s=tokens / outcome.sending_s,
        endings=_endings(outcome.results),
    )


def _endings(results: Sequence[Result]) -> dict[str, int]:
    """By what the client saw: done, shed at once (429), expired before the answer (504) or within it."""
    counts: dict[str, int] = {}
    for result in results:
        name = {429: "shed", 504: "expired"}.get(result.status or 0, str(result.ending))
        if result.ending is Ending.STREAM_ERROR and "deadline" in result.error:
            name = "expired_running"
        counts[name] = counts.get(name, 0) + 1
    return counts


def share_before(end: float, result: Result) -> float:
    """How much of an answer had come at `end`."""
    times = result.output_times
    return sum(at <= end for at in times) / len(times) if times else 0.0


def send(
    url: str,
    prompts: Sequence[Prompt],
    arrivals: Iterable[Arrival] | ClosedLoop,
    max_tokens: int,
    cores: Collection[int],
) -> Run:
    """Ask the service `chat` greedily for all of these as they fall due, from clients on `cores` that yield."""
    options = ClientOptions(
        url=url, model="chat", endpoint="chat", max_tokens=max_tokens, extra={"temperature": 0}, timeout_s=300.0
    )
    limits = Limits(requests=len(prompts), drain_s=180.0, max_in_flight=4096)

    async def load() -> Run:
        async with DueClient(options, generator(0)) as client:
            return await run(client, prompts, arrivals, limits)

    def on_a_loop() -> Run:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(load())

    return _aside(on_a_loop, cores)


def _aside(work: Callable[[], T], cores: Collection[int]) -> T:
    """Do it in a thread on these cores that yields to others: clients stand for other machines.

    Niceness is a thread's and cannot be lowered again; servers that this thread starts would inherit it.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def target() -> None:
        os.sched_setaffinity(0, cores)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=target, name="clients")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
