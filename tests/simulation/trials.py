"""Small simulations under faults, for the tests of this room."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foreserve.app import App
from foreserve.engines.profile import linear
from foreserve.services.llm import LLM
from foreserve.simulation.fault_kinds import read_faults
from foreserve.simulation.faults import Faults
from foreserve.simulation.launcher import SimulatedLauncher
from foreserve.simulation.trial import Trial, try_out
from foreserve.traces.row import TraceRow


def rows(count: int = 200, seed: int = 0, per_s: float = 6.0, tenants: int = 3) -> Iterator[TraceRow]:
    draw = random.Random(seed)
    at = 0.0
    for _ in range(count):
        at += draw.expovariate(per_s)
        yield TraceRow(
            arrival=at,
            input_tokens=min(1000, int(draw.lognormvariate(4.5, 0.8)) + 1),
            output_tokens=min(500, int(draw.lognormvariate(3.4, 0.9)) + 1),
            most_tokens=512,
            tenant=f"t{draw.randrange(tenants)}",
        )


def trial(
    words: str,
    seed: int = 0,
    *,
    count: int = 200,
    per_s: float = 6.0,
    decisions: Path | None = None,
    state: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Trial:
    """A small app on two replicas under these faults."""
    settings = {"replicas": 2, "queue": {"max_waiting": 30, "max_wait_s": 15.0}, **settings}
    app = App(chat=LLM("simulated", **settings), state=state)
    profile = linear(slots=6, kv_tokens=3000, decode_s_per_seq=0.002)
    plan = Faults(read_faults(words), seed) if words else None
    return try_out(
        app, {"chat": profile}, rows(count, seed, per_s), plan, launcher=SimulatedLauncher(), decisions=decisions
    )
