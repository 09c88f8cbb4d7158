"""A day's work for a simulated fleet: requests of real lengths, predictions of them, and a run on the virtual clock.

The dispatcher, its replicas and their rooms are the real ones; engines are simulated, with the pace of SmolLM2 on one
core of a small machine. A policy sees predictions alone; true lengths reach the engine in the payload.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import data, pace, pairs
from benchmarks.common import Report
from foreserve.core import Chunk, EngineSpec, Forecast, Length, Outcome, OutcomeKind, Work
from foreserve.dispatch.dispatcher import Dispatcher
from foreserve.dispatch.ledger import Ledger
from foreserve.dispatch.placement import LeastRequests
from foreserve.dispatch.stream import Stream
from foreserve.engines.generation import Generate
from foreserve.fleet.inline import InlineLauncher
from foreserve.fleet.replicas import Replicas
from foreserve.loadgen.arrivals import generator, trace
from foreserve.ports import Admission, BatchPolicy, Decoded
from foreserve.simulation.clock import run

MOST_TOKENS = 1024
TENANTS = 16


class Row(msgspec.Struct, frozen=True):
    """A request: lengths in tokens, and what is predicted of its output from the other half of the data."""

    prompt: int
    output: int
    predicted: Length
    least: float
    """Of the output's tokens: its 2 % quantile."""


def rows(report: Report, seed: int = 0) -> list[Row]:
    """Held-out requests of the six applications; without the data, log-normal ones."""
    if not pairs.available("apps"):
        report.note("no data here (FORESERVE_DATA): lengths are log-normal, predictions wrong by a factor of 1.35")
        rng = generator(seed)
        lengths = np.clip(rng.lognormal(3.2, 0.9, 4000), 1, MOST_TOKENS)
        wrong = np.exp(rng.normal(0.0, 0.3, 4000))
        quantiles = np.exp(0.3 * np.array([-2.05, 0.0, 0.84, 1.64]))
        return [_row(60, int(true), true * off, quantiles) for true, off in zip(lengths, wrong, strict=True)]
    found = pairs.pairs("apps", seed=seed)
    sizes = zip(pairs.lengths([p.prompt for p in found]), pairs.lengths([p.response for p in found]), strict=True)
    by_pair = dict(zip(map(id, found), sizes, strict=True))
    train, held_out = pairs.split(found, 0.5, seed)
    fits = {app: _fit([by_pair[id(p)] for p in train if p.app == app]) for app in sorted({p.app for p in train})}
    made = []
    for pair in held_out:
        prompt, output = by_pair[id(pair)]
        line, quantiles = fits[pair.app]
        made.append(_row(prompt, output, float(np.polyval(line, prompt)), quantiles))
    report.note(f"lengths: {len(made)} held-out pairs of six applications; predicted by a line for each application")
    return made


def _fit(sizes: Sequence[tuple[int, int]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Output tokens as a line over prompt tokens, and quantiles of true over predicted."""
    prompt, output = np.array(sizes, float).T
    line = np.polyfit(prompt, output, 1)
    return line, np.quantile(output / np.maximum(np.polyval(line, prompt), 1.0), [0.02, 0.5, 0.8, 0.95])


def _row(prompt: int, output: int, mean: float, quantiles: NDArray[np.float64]) -> Row:
    mean = max(1.0, mean)
    least, p50, p80, p95 = np.clip(mean * quantiles, 1.0, MOST_TOKENS).tolist()
    return Row(prompt, max(1, output), Length(mean=mean, p50=p50, p80=p80, p95=p95, source="line"), least)


def saturation(served: Sequence[Row]) -> float:
    """Requests a second that one replica can serve with all slots in use."""
    return pace.saturation((row.prompt, row.output) for row in served)


def arrivals(count: int, rate: float, report: Report, seed: int = 0) -> list[float]:
    """`count` times in seconds at `rate` a second: the conversation trace over and over, begun at a random row."""
    rng = generator(seed)
    file = data.trace("azure_conv")
    if file is None:
        report.note("no trace here (FORESERVE_DATA): arrivals are Poisson")
        gaps = rng.exponential(1.0, count)
    else:
        whole = np.diff([row.at for row in trace(file)])
        gaps = np.resize(np.roll(whole, -int(rng.integers(len(whole)))), count)
        report.note(
            f"arrivals: the Azure conversation trace, repeated from a random row and scaled in time, seed {seed}"
        )
    times: list[float] = np.cumsum(gaps / (gaps.mean() * rate)).tolist()
    return times


class Ended(msgspec.Struct, frozen=True):
    """What a run gave. Latencies in seconds, of those that were done; goodput in requests a second, all in time."""

    mean: float
    p50: float
    p99: float
    goodput: float
    done: float
    """Share of all requests."""
    worst_tenant_p99: float
    tokens_per_s: float
    mean_all: float
    """As `mean`, with the deadline's time for each that was not done."""
    kinds: dict[str, int]


class _Unread:
    """Nobody reads these answers."""

    def feed(self, chunk: Chunk) -> Decoded:
        return Decoded()

    def usage(self) -> dict[str, float]:
        return {}


def simulate(
    policy: BatchPolicy, admission: Admission, served: Sequence[Row], times: Sequence[float], replicas: int, seed: int
) -> Ended:
    """Requests drawn from `served` with `seed` arrive at `times`. Deadline: twice the unloaded time and a second."""
    return run(_simulate(policy, admission, served, times, replicas, seed))


async def _simulate(
    policy: BatchPolicy, admission: Admission, served: Sequence[Row], times: Sequence[float], replicas: int, seed: int
) -> Ended:
    loop = asyncio.get_running_loop()
    rng = generator(seed)
    chosen = rng.integers(len(served), size=len(times)).tolist()
    # A few tenants have most of the requests: shares as 1, 1/2, 1/3, ...
    shares = 1.0 / np.arange(1, TENANTS + 1)
    tenants = rng.choice(TENANTS, size=len(times), p=shares / shares.sum()).tolist()
    outcomes: list[Outcome] = []
    over = asyncio.Event()

    def ended(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == len(times):
            over.set()

    ledger = Ledger()
    dispatcher = Dispatcher("s", policy, LeastRequests(), admission, ledger, max_wait_s=600.0, settled=ended)
    spec = EngineSpec(
        factory="foreserve.engines.simulated:SimulatedEngine",
        options={
            "slots": pace.SLOTS,
            "kv_tokens": pace.SLOTS * MOST_TOKENS * 8,
            "prefill_s_per_token": pace.PREFILL_S,
            "decode_s": pace.DECODE_S,
            "decode_s_per_seq": pace.DECODE_S_PER_SEQ,
        },
    )
    launcher = InlineLauncher(heartbeat_s=3600.0)
    fleet = Replicas("s", lambda: [spec] * replicas, launcher, dispatcher, lambda info: None)
    await fleet.start()
    await asyncio.sleep(1.0)
    assert len(fleet.ready) == replicas
    prompts = {row.prompt: [0] * row.prompt for row in served}
    start = loop.time()
    for number, (at, index, tenant) in enumerate(zip(times, chosen, tenants, strict=True)):
        if start + at > loop.time():
            await asyncio.sleep(start + at - loop.time())
        work = _work(f"q{number}", served[index], f"t{tenant}", loop.time(), prompts)
        dispatcher.submit(work, Stream(work.id, _Unread, bound=64, stall_s=1e9, on_leave=dispatcher.leave))
    await over.wait()
    took = loop.time() - start
    ledger.check(idle=True)
    await fleet.stop(1.0)
    return _summed(outcomes, [served[index] for index in chosen], took)


def _unloaded(row: Row) -> float:
    return row.prompt * pace.PREFILL_S + row.output * pace.DECODE_S


def _work(request_id: str, row: Row, tenant: str, now: float, prompts: dict[int, list[int]]) -> Work:
    prefill = row.prompt * pace.PREFILL_S
    forecast = Forecast(
        input_tokens=row.prompt,
        output=row.predicted,
        most_tokens=MOST_TOKENS,
        seconds=prefill + row.predicted.mean * pace.TPOT_S,
        least_seconds=prefill + row.least * pace.DECODE_S,
    )
    return Work(
        id=request_id,
        payload=Generate(prompt=prompts[row.prompt], max_tokens=row.output, ignore_eos=True),
        cost={"slots": 1.0, "kv_tokens": row.prompt + row.predicted.p80},
        arrival=now,
        deadline=now + 2 * _unloaded(row) + 1.0,
        tenant=tenant,
        forecast=forecast,
    )


def _summed(outcomes: Sequence[Outcome], served: Sequence[Row], took: float) -> Ended:
    by_id = {f"q{number}": row for number, row in enumerate(served)}
    done = [outcome for outcome in outcomes if outcome.kind is OutcomeKind.DONE]
    latency = np.array([outcome.ended - outcome.arrival for outcome in done])
    late = [2 * _unloaded(by_id[outcome.id]) + 1.0 for outcome in outcomes if outcome.kind is not OutcomeKind.DONE]
    by_tenant: dict[str, list[float]] = {}
    for outcome in done:
        by_tenant.setdefault(outcome.tenant, []).append(outcome.ended - outcome.arrival)
    return Ended(
        mean=float(latency.mean()),
        p50=float(np.percentile(latency, 50)),
        p99=float(np.percentile(latency, 99)),
        goodput=len(done) / took,
        done=len(done) / len(outcomes),
        worst_tenant_p99=max(float(np.percentile(values, 99)) for values in by_tenant.values()),
        tokens_per_s=sum(by_id[outcome.id].output for outcome in done) / took,
        mean_all=float((latency.sum() + sum(late)) / len(outcomes)),
        kinds=dict(Counter(outcome.kind.value for outcome in outcomes)),
    )
