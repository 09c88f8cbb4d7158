"""Small traces for tests of the simulator."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from foreserve.app import App
from foreserve.engines.profile import EngineProfile, linear
from foreserve.services.llm import LLM
from foreserve.traces.row import Header, TraceRow

PROFILE = linear(slots=8, kv_tokens=20_000, prefill_s_per_token=0.0005, decode_s=0.02, decode_s_per_seq=0.001)


class Rows:
    """A trace in memory."""

    def __init__(self, rows: list[TraceRow], name: str = "rows") -> None:
        self.header = Header(name=name)
        self.skipped = 0
        self.rows = rows

    def __iter__(self) -> Iterator[TraceRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def poisson(n: int, rate: float, *, seed: int = 0, **fields: Any) -> Rows:
    """`n` requests, `rate` a second, prompts and answers of some tens of tokens."""
    rng = random.Random(seed)
    rows, at = [], 0.0
    for _ in range(n):
        at += rng.expovariate(rate)
        sizes = {"input_tokens": rng.randint(10, 200), "output_tokens": rng.randint(1, 60), "most_tokens": 128}
        rows.append(TraceRow(arrival=at, **{**sizes, **fields}))
    return Rows(rows)


def chat(**settings: Any) -> App:
    """An app with one language model, which keeps no state."""
    return App(chat=LLM("simulated", **settings), state={"history": False})


def profiles(**profile: EngineProfile) -> dict[str, EngineProfile]:
    return profile or {"chat": PROFILE}
