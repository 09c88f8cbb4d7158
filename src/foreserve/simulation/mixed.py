"""Random simulations, each from one number: an app, an engine, a load and what goes wrong. For sweeps over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec

from foreserve.app import App
from foreserve.engines.profile import DecodeTable, EngineProfile, PrefillTable
from foreserve.services.llm import LLM
from foreserve.simulation.fault_kinds import (
    ClientCancel,
    ClientRetry,
    DelayedStart,
    Fault,
    LoadSpike,
    LostHeartbeat,
    MispredictedLengths,
    RestlessScaling,
    SlowWorker,
    StaleStatistics,
    WorkerDeath,
)
from foreserve.traces.drawing import Generator, generator
from foreserve.traces.row import TraceRow

T = TypeVar("T")

LEAST_REQUESTS: Final = 60
MOST_REQUESTS: Final = 240


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One service of a random app: its settings as an app file has them, and its engine."""

    name: str
    settings: dict[str, Any]
    profile: EngineProfile


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A random simulation. The same seed is the same case, for good within one version."""

    seed: int
    services: list[Service]
    requests: int
    per_s: float
    tenants: int
    deadlines: float
    """The share of requests with a deadline."""
    faults: list[Fault]

    def app(self) -> App:
        """A fresh app."""
        kinds: dict[str, Any] = {service.name: LLM("simulated", **service.settings) for service in self.services}
        return App(state={"history": False}, **kinds)

    def profiles(self) -> dict[str, EngineProfile]:
        """By the services' names."""
        return {service.name: service.profile for service in self.services}

    def rows(self) -> Iterator[TraceRow]:
        """The load: lengths with a long tail, tenants of which the first asks most."""
        rng, at = generator(self.seed, 1), 0.0
        for _ in range(self.requests):
            at += rng.exponential(1.0 / self.per_s)
            service = self.services[int(rng.integers(len(self.services)))]
            context = service.profile.context_tokens
            prompt = _within(rng.lognormal(4.0, 1.0), context // 2)
            limited = rng.random() < 0.7
            yield TraceRow(
                arrival=at,
                service=service.name,
                input_tokens=prompt,
                output_tokens=_within(rng.lognormal(3.0, 1.2), context - prompt),
                most_tokens=int(rng.integers(8, 512)) if limited else None,
                tenant=f"t{min(int(rng.exponential(self.tenants / 2)), self.tenants - 1)}",
                deadline_s=float(rng.uniform(0.2, 20.0)) if rng.random() < self.deadlines else None,
                utility=float(rng.choice([0.5, 1.0, 4.0])),
                app=f"a{rng.integers(3)}",
            )


def mixed(seed: int) -> Case:
    """The random simulation of this number."""
    rng = generator(seed, 0)
    services = [_service(rng, name) for name in ("a", "b")[: 1 + (rng.random() < 0.2)]]
    requests = int(rng.integers(LEAST_REQUESTS, MOST_REQUESTS + 1))
    pace = sum(_requests_per_s(service) for service in services)
    return Case(
        seed=seed,
        services=services,
        requests=requests,
        per_s=pace * float(one_of(rng, (0.3, 0.7, 1.0, 1.5, 3.0))),
        tenants=int(rng.integers(1, 6)),
        deadlines=float(one_of(rng, (0.0, 0.2, 1.0))),
        faults=mixed_faults(rng),
    )


def mixed_faults(rng: Generator) -> list[Fault]:
    """One to five faults with parameters of their own."""
    around = 10.0 ** rng.uniform(0.3, 1.7)  # seconds between strikes, of all that strike
    faults: list[Fault] = [
        WorkerDeath(every_s=around, at_once=int(rng.integers(1, 5)), in_start=_share(rng)),
        SlowWorker(every_s=around, for_s=rng.uniform(1, 20), factor=rng.uniform(1.5, 20)),
        StaleStatistics(every_s=around, for_s=rng.uniform(5, 60)),
        LostHeartbeat(every_s=around, in_time=_share(rng)),
        DelayedStart(share=_share(rng), by_s=rng.uniform(0.1, 40)),
        MispredictedLengths(bias=10.0 ** rng.uniform(-1, 1), noise=rng.uniform(0, 2), absurd=_share(rng) / 2),
        LoadSpike(
            every_s=around,
            for_s=rng.uniform(1, 15),
            times=rng.uniform(1.5, 4),
            how=one_of(rng, ("more", "sooner")),
        ),
        ClientCancel(share=_share(rng), patience_s=10.0 ** rng.uniform(-2, 1), after_first=_share(rng)),
        ClientRetry(share=_share(rng), most=int(rng.integers(1, 4)), backoff_s=rng.uniform(0, 4)),
        RestlessScaling(every_s=around),
    ]
    chosen = sorted(rng.permutation(len(faults))[: int(rng.integers(1, 6))])
    return [faults[index] for index in chosen]


def _service(rng: Generator, name: str) -> Service:
    batching: Literal["continuous", "static"] = one_of(rng, ("continuous", "continuous", "static"))
    policies = ["fcfs", "hrrn", "auto"] if batching == "continuous" else ["fixed", "magnus", "auto"]
    if rng.random() < 0.1:
        policies = ["fcfs", "hrrn", "fixed", "magnus"]
    slots = int(one_of(rng, (1, 2, 4, 8, 16)))
    context = int(one_of(rng, (256, 1024, 2048)))
    settings: dict[str, Any] = {
        "policy": one_of(rng, policies),
        "replicas": _replicas(rng),
        "placement": one_of(rng, ("least_requests", "round_robin")),
        "queue": {
            "max_waiting": int(one_of(rng, (1, 4, 16, 64, 256))),
            "max_wait_s": float(rng.uniform(1, 30)),
            "admission": one_of(rng, ("auto", "bounded", "foreseen", "patient", "always")),
        },
        "liveness_s": float(rng.uniform(4, 30)),
        "start_limit_s": float(rng.uniform(20, 120)),
        "foresight": {
            "predictor": one_of(rng, ("auto", "histogram", "off")),
            "kv": one_of(rng, ("forecast", "forecast", "worst_case")),
            "remember": False,
        },
    }
    # From room for one request of full length to room for all: where there is little, the engine preempts.
    kv_tokens = int(context * one_of(rng, (1.0, 1.5, slots / 4 + 1, slots)))
    profile = EngineProfile(
        name="random",
        batching=batching,
        slots=slots,
        kv_tokens=kv_tokens,
        context_tokens=context,
        prefill=PrefillTable(tokens=[0, context], before=[0], seconds=[[0.0], [context * 10.0 ** rng.uniform(-4, -3)]]),
        decode=DecodeTable(sequences=[1, 32], context=[0], seconds=[[0.02], [0.02 + 0.1 * rng.random()]]),
        max_batched_tokens=one_of(rng, (None, 128, 512)),
        block_tokens=int(one_of(rng, (1, 16))),
        start_s=float(one_of(rng, (0.0, 1.0, 10.0))),
    )
    return Service(name=name, settings=settings, profile=profile)


def _replicas(rng: Generator) -> int | list[int]:
    """Their number, or the least and the most of them."""
    least, most = int(rng.integers(0, 3)), int(rng.integers(1, 5))
    return [least, max(least, most)] if rng.random() < 0.5 else most


def _requests_per_s(service: Service) -> float:
    """About what its replicas can do, by requests of the mean length."""
    profile, replicas = service.profile, service.settings["replicas"]
    if isinstance(replicas, list):
        replicas = sum(replicas) / 2
    side_by_side = min(profile.slots, max(1.0, profile.kv_tokens / 150))
    step = profile.decode.seconds[0][0] + (profile.decode.seconds[1][0] - profile.decode.seconds[0][0]) * (
        side_by_side / 32
    )
    return float(replicas * side_by_side / (35 * step))


def one_of(rng: Generator, among: Sequence[T]) -> T:
    """One of these, as it is."""
    return among[int(rng.integers(len(among)))]


def _share(rng: Generator) -> float:
    return float(one_of(rng, (0.0, 0.2, 0.5, 1.0)))


def _within(tokens: float, most: int) -> int:
    return max(1, min(math.ceil(tokens), most))
