"""The engine that stands behind Ray Serve in its benchmark, and the load that it gets.

A simulated engine like Llama-2-7B on a 48 GB card (128 slots, 36,896 KV tokens), which preempts where its cache is
full. Requests are those of a real trace, at its own pace or another; no two prompts begin alike, as the engine has no
prefix cache and the trace tells nothing of prefixes.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from benchmarks.common import Report
from benchmarks.data import folder
from benchmarks.routing_load import CONTEXT, READ_S, profile
from foreserve.core import Work
from foreserve.engines.generation import Count, Sized
from foreserve.engines.simulated import SimulatedEngine
from foreserve.loadgen.arrivals import generator, poisson
from foreserve.traces.open import open_trace

TOGETHER = 16
"""Tokens of an answer that come in one message."""

READS = 5500.0
"""Tokens of prompts that it reads in a second."""

STEP_S = 0.03
"""Of a step of a replica that is not crowded; one that reads nothing but the weights takes `READ_S`."""

TRACE = "traces/azure_llm_2023/AzureLLMInferenceTrace_conv.csv.xz"
MOST_TOKENS = 1024

assert READ_S < STEP_S


class Ask(msgspec.Struct, frozen=True):
    """One request: when it comes, its lengths in tokens."""

    at: float
    prompt: int
    output: int

    def payload(self, number: int) -> dict[str, Any]:
        """What a client sends; `output` is for the engine alone."""
        text = (f"{number:08}" + "word" * self.prompt)[: 4 * self.prompt]
        return {"prompt": text, "tokens": self.prompt, "output": self.output, "max_tokens": MOST_TOKENS}


class TrueLengths(dict[str, int]):
    """By request."""

    def output_tokens(self, request_id: str) -> int:
        """See `generation.TrueLengths`."""
        return self[request_id]


class Engine:
    """One replica's engine. Called with an `Ask`'s payload it yields counts of tokens."""

    def __init__(self) -> None:
        self._lengths = TrueLengths()
        self._engine = SimulatedEngine(profile=profile(), emit_every=TOGETHER, lengths=self._lengths)

    async def __call__(self, asked: dict[str, Any]) -> AsyncIterator[int]:
        request_id = uuid.uuid4().hex
        self._lengths[request_id] = int(asked["output"])
        prompt = int(asked["tokens"])
        work = Work(
            id=request_id,
            payload=Sized(prompt_tokens=prompt, max_tokens=CONTEXT - prompt),
            cost={"slots": 1.0},
            arrival=0.0,
        )
        try:
            async for chunk in self._engine.run(work):
                if isinstance(chunk.data, Count):
                    yield chunk.data.tokens
        finally:
            del self._lengths[request_id]


def load(report: Report, rate: float, seconds: float, begin: int = 0) -> list[Ask]:
    """The trace's requests from row `begin` on, its arrivals played so that `rate` come in a second on average."""
    count = int(rate * seconds)
    path = folder() / TRACE
    if not path.exists():
        report.note("no Azure trace here (FORESERVE_DATA): arrivals are Poisson, lengths log-normal")
        rng = generator(begin)
        times = itertools.islice(poisson(rate, rng), count)
        lengths = zip(rng.lognormal(6.3, 1.0, count), rng.lognormal(4.9, 0.8, count), strict=True)
        return [
            Ask(at.at, min(int(p) + 2, 3000), min(int(o) + 1, 1000)) for at, (p, o) in zip(times, lengths, strict=True)
        ]
    usable = (row for row in open_trace(path) if row.input_tokens < 3500 and _whole(row) < CONTEXT - 96)
    rows = list(itertools.islice(usable, begin, begin + count))
    report.note("Ray Serve: requests of the Azure conversation trace of 2023 that fit 4,000 tokens")
    pace = seconds / max(rows[-1].arrival - rows[0].arrival, 1e-9)
    return [
        Ask((row.arrival - rows[0].arrival) * pace, max(row.input_tokens, 2), max(row.output_tokens, 1)) for row in rows
    ]


def _whole(row: Any) -> int:
    return int(row.input_tokens + row.output_tokens)
