"""The fact checker on the virtual clock, with an engine for each stage or one for all, in three forms: with streaming,
without, and stage by stage.

The engines take the time of a cost model (16 slots, 25 ms a step of one sequence and 1 ms for each more, 4,000 tokens a
second of prompt) and say what a script says, so that all forms give the same verdicts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from hashlib import blake2b
from itertools import pairwise
from multiprocessing import get_context
from typing import Any, cast

import msgspec
import numpy as np

import foreserve as fs
from benchmarks.pipeline_app import best, fact_checker, lexical_scores, passages, question, terms
from benchmarks.pipeline_engine import ScriptedLLM
from foreserve.clock import now
from foreserve.core import Request
from foreserve.simulation import clock

ENGINE = {"slots": 16, "decode_s": 0.025, "decode_s_per_seq": 0.001, "prefill_s_per_token": 1 / 16_000, "start_s": 0.0}
STAGES = ("answer", "extract", "ask_for", "appraise")
ENCODE_S = 0.01
WORD_S = 0.01
"""Of its replica's one core, for adding up one word's scores over a large index, as the paper's BM25 stage does."""

RATES = (0.05, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
"""Requests a second; the first is no load. With one engine for all stages a fourth of them."""

TARGETS = (1.1, 1.25, 1.5, 2.0)
"""Mean latencies that are to be kept, as multiples of the unloaded one without streaming."""

FORMS: dict[str, dict[str, bool]] = {
    "streaming": {"streaming": True},
    "nonstreaming": {"streaming": False},
    "stagewise": {"streaming": False, "stagewise": True},
}
"""Of one application: all come to the same results."""


@fs.function(launcher="inline", max_running=8)
async def meaning(query: str) -> list[float]:
    """Nearness to each passage, by a count of letters in common: it stands for an encoder that takes `ENCODE_S`."""
    await asyncio.sleep(ENCODE_S)
    letters = set(query)
    return [len(letters & set(passage)) / 30 for passage in passages]


@fs.function(launcher="inline", max_running=16, replicas=4)
class ByWords:
    """Passages by words: fed while the query is written, where it may be. Each replica has one core."""

    def __init__(self) -> None:
        self.core = asyncio.Lock()

    async def __call__(self, words: fs.Stream[str]) -> list[int]:
        """Takes `WORD_S` of the core for each."""
        scores = np.zeros(len(passages))
        async for word in words:
            async with self.core:
                await asyncio.sleep(WORD_S)
            lexical_scores(terms(word), scores)
        return best(scores)


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One load: what was asked in a second, latencies and first verdicts in seconds, and all results by question."""

    rate: float
    latencies: list[float]
    firsts: list[float]
    results: dict[int, Any]

    @property
    def mean(self) -> float:
        """In seconds."""
        return float(np.mean(self.latencies))

    def percentile(self, q: float) -> float:
        """In seconds."""
        return float(np.percentile(self.latencies, q))


def app(form: str, *, shared: bool = False, replicas: int = 1, policy: str = "earliest_root") -> fs.App:
    """The app, in one of `FORMS`: one model for all stages, or one for each, with so many replicas each."""
    patient = {"max_waiting": 100_000, "max_wait_s": 3600.0}
    words: dict[str, Any] = {"engine": ENGINE, "replicas": replicas, "policy": policy, "queue": patient}
    words["foresight"] = {"predictor": "off"}
    models = {"chat": ScriptedLLM(**words)} if shared else {stage: ScriptedLLM(**words) for stage in STAGES}
    of = {stage: models["chat"] if shared else models[stage] for stage in STAGES}
    checked = fact_checker(of, meaning, cast(Any, ByWords), max_running=100_000, **FORMS[form])
    served: dict[str, Any] = {"checked": checked, "meaning": meaning, "by_words": ByWords, **models}
    return fs.App(state={"history": False}, **served)


def play(one: fs.App, rate: float, count: int, seed: int = 0) -> Point:
    """`count` requests that come by chance, `rate` in a second. Raises what a request failed with."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)

    async def main() -> Point:
        running = one.run()
        await running.start()
        served = running.pipelines["checked"]
        latencies, firsts, results = [0.0] * count, [0.0] * count, dict[int, Any]()

        async def ask(number: int) -> None:
            began = now()
            request = Request(id=f"q{number}", service="checked", payload=None, arrival=began)
            inputs = {"question": question(number)}
            run = served.submit(request, inputs, listens=True)
            async for event in run.each():
                if event.name == "verdicts" and not firsts[number]:
                    firsts[number] = now() - began
            results[number] = run.value()
            latencies[number] = now() - began

        asked = []
        for number, gap in enumerate(gaps):
            await asyncio.sleep(gap)
            asked.append(asyncio.ensure_future(ask(number)))
        await asyncio.gather(*asked)
        await running.stop(0.0)
        running.ledger.check(idle=True)
        return Point(rate=rate, latencies=latencies, firsts=firsts, results=results)

    return clock.run(main())


class Swept(msgspec.Struct, frozen=True, kw_only=True):
    """A form over all rates, the first of which is no load; times in seconds."""

    rates: list[float]
    means: list[float]
    p99s: list[float]
    first: float
    """The mean time until the first verdict, without load."""
    results: bytes
    """A digest of all results: what all forms must come to."""


def swept(form: str, shared: bool, count: int, rates: Sequence[float] = RATES) -> Swept:
    """A form at each rate. The arrivals are those of every form, closer together as the rate rises."""
    rates = [rate / 4 if shared else rate for rate in rates]
    points = [play(app(form, shared=shared), rate, count) for rate in rates]
    digest = blake2b(msgspec.json.encode([sorted(point.results.items()) for point in points]))
    return Swept(
        rates=rates,
        means=[point.mean for point in points],
        p99s=[point.percentile(99) for point in points],
        first=float(np.mean(points[0].firsts)),
        results=digest.digest(),
    )


def sweep(cases: Sequence[tuple[str, bool]], count: int, rates: Sequence[float] = RATES) -> list[Swept]:
    """Several (form, shared), side by side in two processes."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        asked = [pool.submit(swept, form, shared, count, rates) for form, shared in cases]
        return [each.result(timeout=900) for each in asked]


def within(rates: Sequence[float], means: Sequence[float], target: float) -> float:
    """The highest rate whose mean is within the target, between two measured ones by a straight line."""
    best = rates[0] * min(1.0, target / means[0])
    for (low, before), (high, after) in pairwise(zip(rates, means, strict=True)):
        if before <= target:
            best = high if after <= target else low + (high - low) * (target - before) / (after - before)
    return best


def same(points: Sequence[Point]) -> bool:
    """Whether all of them came to the same results."""
    return all(point.results == points[0].results for point in points)
