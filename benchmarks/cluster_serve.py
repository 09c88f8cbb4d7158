"""Our plug-ins for Ray Serve beside its own router and scaling policy: one deployment, one load, in turn.

The deployment stands for an engine: it reads prompts one after another, then says a token a step, in steps that get
longer with the square of what it holds. Requests are those of a real trace, played faster; their answers' lengths are
in the payload for the engine alone.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np

from benchmarks.common import Report, console
from benchmarks.data import folder
from foreserve.loadgen.arrivals import generator, poisson
from foreserve.traces.open import open_trace

KV_TOKENS = 12_000
TOKEN_S = 0.0001
STEP_S = 0.02
TOGETHER = 16
"""Tokens of an answer that come in one message."""

TRACE = "traces/azure_llm_2023/AzureLLMInferenceTrace_conv.csv.xz"
MOST_TOKENS = 1024
LIMIT_S = 120.0


class Ask(msgspec.Struct, frozen=True):
    """One request: when it comes, its lengths in tokens."""

    at: float
    prompt: int
    output: int


class Scaled(msgspec.Struct, frozen=True):
    """One run under a scaling policy."""

    replica_s: float
    p99_s: float


class Engine:
    """The modelled engine; see above."""

    def __init__(self) -> None:
        self.held = 0
        self.reading = asyncio.Lock()

    async def __call__(self, asked: dict[str, Any]) -> AsyncIterator[int]:
        prompt, output = len(asked["prompt"]) // 4, int(asked["output"])
        async with self.reading:
            await asyncio.sleep(TOKEN_S * prompt)
        self.held += prompt
        held = prompt
        try:
            for start in range(0, output, TOGETHER):
                tokens = min(TOGETHER, output - start)
                await asyncio.sleep(tokens * STEP_S * (1 + (self.held / KV_TOKENS) ** 2))
                self.held += tokens
                held += tokens
                yield tokens
        finally:
            self.held -= held


def load(report: Report, rate: float, seconds: float) -> list[Ask]:
    """The trace's requests, its arrivals played so that `rate` come in a second on average."""
    count = int(rate * seconds)
    path = folder() / TRACE
    if not path.exists():
        report.note("no Azure trace here (FORESERVE_DATA): arrivals are Poisson, lengths log-normal")
        rng = generator(0)
        times = itertools.islice(poisson(rate, rng), count)
        lengths = zip(rng.lognormal(6.3, 1.0, count), rng.lognormal(4.9, 0.8, count), strict=True)
        return [Ask(at.at, int(p) + 1, int(o) + 1) for at, (p, o) in zip(times, lengths)]  # noqa: B905
    rows = list(itertools.islice((row for row in open_trace(path) if row.input_tokens < 3000), count))
    report.note("Ray Serve: requests of the Azure conversation trace of 2023, with prompts below 3,000 tokens")
    pace = seconds / max(rows[-1].arrival - rows[0].arrival, 1e-9)
    return [
        Ask((row.arrival - rows[0].arrival) * pace, row.input_tokens, min(max(row.output_tokens, 1), MOST_TOKENS))
        for row in rows
    ]


async def play(handle: Any, asks: Sequence[Ask]) -> tuple[list[float], int]:
    """Seconds of each answer, and how many were lost: ended by an error, or short of tokens.

    One that is not whole after `LIMIT_S` is given up by its client: it counts with that time, and is not lost.
    """
    start = time.perf_counter()
    took: list[float] = []
    lost = 0

    async def one(ask: Ask) -> None:
        nonlocal lost
        await asyncio.sleep(max(0.0, ask.at - (time.perf_counter() - start)))
        sent = time.perf_counter()
        payload = {"prompt": "word" * ask.prompt, "output": ask.output, "max_tokens": MOST_TOKENS}
        answer = handle.options(stream=True).remote(payload)
        try:
            async with asyncio.timeout(LIMIT_S):
                tokens = sum([part async for part in answer])
            if tokens == ask.output:
                took.append(time.perf_counter() - sent)
            else:
                lost += 1
        except TimeoutError:
            took.append(LIMIT_S)
        except Exception:
            lost += 1
        finally:
            answer.cancel()

    await asyncio.gather(*(one(ask) for ask in asks))
    return took, lost


@contextmanager
def serving() -> Iterator[Any]:
    """`ray.serve` on a cluster of this machine."""
    import ray
    from ray import serve

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
    try:
        serve.start(proxy_location="Disabled")
        yield serve
        serve.shutdown()
    finally:
        ray.shutdown()


def deployed(serve: Any, **options: Any) -> Any:
    """A handle of the deployment with these options."""
    made = serve.deployment(Engine).options(max_ongoing_requests=64, ray_actor_options={"num_cpus": 0}, **options)
    return serve.run(made.bind(), name="engine", route_prefix=None)


def routed(report: Report, repetitions: int, seconds: float) -> tuple[list[float], list[float], int]:
    """The 99th percentile of the seconds of an answer, with our router and with Serve's, and what was lost."""
    from ray.serve.config import RequestRouterConfig

    ours = RequestRouterConfig(
        request_router_class="foreserve.integrations.ray_serve:AnticipatedRouter",
        request_router_kwargs={"kv_tokens": KV_TOKENS, "token_s": TOKEN_S, "step_s": STEP_S, "most": MOST_TOKENS},
    )
    asks = load(report, 1.5, seconds)
    found: dict[str, list[float]] = {"ours": [], "default": []}
    missing = 0
    with serving() as serve:
        for _ in range(repetitions):
            for name, config in (("ours", ours), ("default", RequestRouterConfig())):
                handle = deployed(serve, num_replicas=3, request_router_config=config)
                took, lost = asyncio.run(play(handle, asks))
                missing += lost
                found[name].append(float(np.percentile(took, 99)))
                mean = float(np.mean(took))
                console.print(f"  {name}: p99 {found[name][-1]:.2f} s, mean {mean:.2f} s, {lost} lost")
                serve.delete("engine")
    return found["ours"], found["default"], missing


def scaled(report: Report, seconds: float) -> tuple[Scaled, Scaled, int]:
    """Replica-seconds and 99th percentile with our policy and with Serve's, and what was lost."""
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    words = {
        "min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 6, "upscale_delay_s": 0.0,
        "downscale_delay_s": 10.0, "metrics_interval_s": 0.5, "look_back_period_s": 2.0,
    }  # fmt: skip
    ours = AutoscalingPolicy(
        policy_function="foreserve.integrations.ray_serve_scaling:ForecastPolicy",
        policy_kwargs={"window_s": 1.0, "horizon_s": 5.0},
    )
    report.note("scaling: both policies with the same delays, bounds and target; Serve's defaults would wait 30 s")
    wave = load(report, 1.5, seconds)
    runs: list[Scaled] = []
    missing = 0
    with serving() as serve:
        for config in (AutoscalingConfig(**words, policy=ours), AutoscalingConfig(**words)):
            handle = deployed(serve, autoscaling_config=config)
            replica_s, took, lost = asyncio.run(_counted(serve, handle, wave))
            missing += lost
            runs.append(Scaled(replica_s, float(np.percentile(took, 99))))
            console.print(f"  {replica_s:.0f} replica-seconds, p99 {runs[-1].p99_s:.2f} s, {lost} lost")
            serve.delete("engine")
    return runs[0], runs[1], missing


async def _counted(serve: Any, handle: Any, asks: Sequence[Ask]) -> tuple[float, list[float], int]:
    """As `play`, with the replica-seconds until the last answer."""
    playing = asyncio.create_task(play(handle, asks))
    replica_s, last = 0.0, time.perf_counter()
    while not playing.done():
        await asyncio.wait([playing], timeout=1.0)
        status = await asyncio.to_thread(serve.status)
        states = status.applications["engine"].deployments["Engine"].replica_states
        now = time.perf_counter()
        replica_s += sum(states.get(state, 0) for state in ("STARTING", "RUNNING", "STOPPING")) * (now - last)
        last = now
    took, lost = playing.result()
    return replica_s, took, lost
