"""Our plug-ins for Ray Serve beside its own router and scaling policy: one deployment, one load, in turn.

The deployment is a simulated engine (`cluster_serve_engine`); requests are those of a real trace.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np

from benchmarks.cluster_serve_engine import MOST_TOKENS, READS, STEP_S, Ask, Engine, load
from benchmarks.common import Report, console
from benchmarks.routing_load import KV_TOKENS, SLOTS

LIMIT_S = 120.0
ROUTED_RATE = 1.6
"""Requests a second for each replica: about nine tenths of what they bear."""

ROUTED_REPLICAS = 4
ROUTED_BEGINS = (3000, 6000)
"""Rows of the trace at which runs begin."""


class Routed(msgspec.Struct, frozen=True):
    """The 99th percentiles of the seconds to a first token and of a whole answer."""

    first_s: float
    whole_s: float


class Scaled(msgspec.Struct, frozen=True):
    """One run under a scaling policy."""

    replica_s: float
    p99_s: float


async def play(handle: Any, asks: Sequence[Ask]) -> tuple[list[float], list[float], int]:
    """Seconds to each first token and of each answer, and how many were lost: ended by an error, or short of tokens.

    One that is not whole after `LIMIT_S` is given up by its client: it counts with that time, and is not lost.
    """
    start = time.perf_counter()
    first: list[float] = []
    took: list[float] = []
    lost = 0

    async def one(number: int, ask: Ask) -> None:
        nonlocal lost
        await asyncio.sleep(max(0.0, ask.at - (time.perf_counter() - start)))
        sent = time.perf_counter()
        began, tokens = None, 0
        answer = handle.options(stream=True).remote(ask.payload(number))
        try:
            async with asyncio.timeout(LIMIT_S):
                async for part in answer:
                    began = time.perf_counter() if began is None else began
                    tokens += part
            if tokens == ask.output and began is not None:
                first.append(began - sent)
                took.append(time.perf_counter() - sent)
            else:
                lost += 1
        except TimeoutError:
            first.append(LIMIT_S if began is None else began - sent)
            took.append(LIMIT_S)
        except Exception:
            lost += 1
        finally:
            answer.cancel()

    await asyncio.gather(*(one(*each) for each in enumerate(asks)))
    return first, took, lost


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
    made = serve.deployment(Engine).options(max_ongoing_requests=SLOTS, ray_actor_options={"num_cpus": 0}, **options)
    return serve.run(made.bind(), name="engine", route_prefix=None)


def routed(report: Report, repetitions: int, seconds: float) -> tuple[list[Routed], list[Routed], int]:
    """With our router and with Serve's, run by run, and what was lost."""
    from ray.serve.config import RequestRouterConfig

    ours = RequestRouterConfig(
        request_router_class="foreserve.integrations.ray_serve:AnticipatedRouter",
        request_router_kwargs={
            "kv_tokens": KV_TOKENS, "token_s": 1 / READS, "step_s": STEP_S, "most": MOST_TOKENS
        },
    )  # fmt: skip
    found: dict[str, list[Routed]] = {"ours": [], "default": []}
    missing = 0
    with serving() as serve:
        for begin in ROUTED_BEGINS[:repetitions]:
            asks = load(report, ROUTED_RATE * ROUTED_REPLICAS, seconds, begin)
            for name, config in (("ours", ours), ("default", RequestRouterConfig())):
                handle = deployed(serve, num_replicas=ROUTED_REPLICAS, request_router_config=config)
                first, took, lost = asyncio.run(play(handle, asks))
                missing += lost
                found[name].append(Routed(float(np.percentile(first, 99)), float(np.percentile(took, 99))))
                console.print(f"  {name}: p99 {found[name][-1]}, mean {float(np.mean(took)):.2f} s, {lost} lost")
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
    _, took, lost = playing.result()
    return replica_s, took, lost
