"""One run of the scaling benchmark: a service, a load, a way to scale, on the virtual clock, and what came of it."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np

from benchmarks.scaling_traces import Load
from foreserve.app import App
from foreserve.core import Outcome, OutcomeKind
from foreserve.engines.profile import DecodeTable, EngineProfile, PrefillTable
from foreserve.services.llm import LLM
from foreserve.simulation.past import Past
from foreserve.simulation.study import simulate

CONTEXT: Final = 4096
KV_TOKENS: Final = 36_896
SLOTS: Final = 128
"""Llama-2-7B on one 48 GB card, as PreServe's authors set it up."""

START_S: Final = 25.0
TTFT_S: Final = 2.0
PER_TOKEN_S: Final = 0.25
"""The objective: the first token within `TTFT_S`, all of it within `PER_TOKEN_S` for each token."""

TARGET: Final = 0.99
"""The share of requests that is to meet it."""

FORESEEING: Final = ("forecast", "hybrid")
"""Policies that go by a forecast."""


def profile() -> EngineProfile:
    """Prompts at 7,000 tokens a second; a decode step of 20 ms, and 0.15 ms and what its context reads per sequence."""
    base, each, read = 0.02, 0.00015, 6e-7
    return EngineProfile(
        name="Llama-2-7B, 48 GB",
        slots=SLOTS,
        kv_tokens=KV_TOKENS,
        context_tokens=CONTEXT,
        prefill=PrefillTable(tokens=[0, 8192], before=[0], seconds=[[0.0], [8192 / 7000]]),
        decode=DecodeTable(
            sequences=[1, SLOTS],
            context=[0, CONTEXT],
            seconds=[[base + n * each, base + n * (each + CONTEXT * read)] for n in (1, SLOTS)],
        ),
        max_batched_tokens=8192,
        block_tokens=16,
        start_s=START_S,
    )


class Way(msgspec.Struct, frozen=True):
    """How a service is scaled: by a policy and its options, or not at all (`policy` empty, `replicas` a number)."""

    name: str
    policy: str = ""
    options: dict[str, Any] = {}
    replicas: int | tuple[int, int] = (1, 16)


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one run, in the time that counts. Latencies in seconds; `normalised` is per output token.

    `late` are requests that missed the objective or were not done. Courses have a value for each `width_s` seconds.
    """

    way: Way
    load: str
    requests: int
    late: int
    replica_hours: float
    need_hours: float
    starts: int
    ttft: list[float]
    normalised: list[float]
    e2e: list[float]
    width_s: float
    need: list[float]
    paid: list[float]
    forecasters: str = ""

    @property
    def attained(self) -> float:
        """The share of requests that met the objective."""
        return 1.0 - self.late / self.requests


def run(load: Load, way: Way, *, begin_s: float, lead_s: float, end_s: float, window_s: float, seed: int = 0) -> Ran:
    """Play what comes from `begin_s - lead_s` until `end_s`; what comes from `begin_s` on counts.

    What came before that is history for forecasts and length predictors.
    """
    first_s = max(0.0, begin_s - lead_s)
    played = load.between(first_s, end_s)
    lead_s = begin_s - first_s
    past = Past(load.between(0.0, first_s), first_s) if first_s > 0 else None
    service = LLM(
        "simulated",
        replicas=way.replicas,
        max_running=SLOTS,
        queue={"max_waiting": 4096, "max_wait_s": 60.0},
        scaling=_scaling(way, load, window_s),
    )
    heard = _Heard()
    app = App(chat=service, state={"history": False})
    result = simulate(app, {"chat": profile()}, played, seed=seed, observers=[heard.ended], past=past)
    figures = result.services["chat"]
    series = figures.series
    rows = np.array([row for row in heard.rows if row[0] >= result.start_s + lead_s])
    skipped = int(lead_s // series.width_s)
    paid, need = _numbers(series.replicas[skipped:]), _numbers(series.need[skipped:])
    hours = series.width_s / 3600.0
    return Ran(
        way=way,
        load=load.name,
        requests=len(rows),
        late=int((~((rows[:, 1] <= TTFT_S) & (rows[:, 2] <= PER_TOKEN_S))).sum()),
        replica_hours=sum(paid) * hours,
        need_hours=sum(need) * hours,
        starts=0 if figures.scaling is None else figures.scaling.starts,
        ttft=rows[:, 1].tolist(),
        normalised=rows[:, 2].tolist(),
        e2e=rows[:, 3].tolist(),
        width_s=series.width_s,
        need=need,
        paid=paid,
    )


def _scaling(way: Way, load: Load, window_s: float) -> dict[str, Any]:
    if not way.policy:
        return {}
    scaling = {"policy": way.policy, "policy_options": way.options, "window_s": window_s, "day_s": load.day_s}
    # Who looks at no forecast needs no good one, which halves the time that its runs take.
    return scaling if way.policy in FORESEEING else {**scaling, "forecaster": "last_value"}


def _numbers(values: list[float] | list[float | None]) -> list[float]:
    return [0.0 if value is None else value for value in values]


class _Heard:
    """When each request came, its TTFT, its latency per token and its latency; what was not done is never."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float, float, float]] = []

    def ended(self, outcome: Outcome) -> None:
        if outcome.kind is not OutcomeKind.DONE or outcome.first is None:
            self.rows.append((outcome.arrival, np.inf, np.inf, np.inf))
            return
        took = outcome.ended - outcome.arrival
        tokens = max(1.0, outcome.usage.get("output_tokens", 1.0))
        self.rows.append((outcome.arrival, outcome.first - outcome.arrival, took / tokens, took))
