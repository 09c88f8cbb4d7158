"""The fact checker on the virtual clock, with an engine for each stage or one for all; streaming on and off.

The engines take the time of a cost model (16 slots, 25 ms a step of one sequence and 1 ms for each more, 4,000 tokens a
second of prompt) and say what a script says, so that both forms give the same verdicts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

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
WORD_S = 0.03
"""For adding up one word's scores over a large index, as the paper's BM25 stage does."""


@fs.function(launcher="inline", max_running=8)
async def meaning(query: str) -> list[float]:
    """Nearness to each passage, by a count of letters in common: it stands for an encoder that takes `ENCODE_S`."""
    await asyncio.sleep(ENCODE_S)
    letters = set(query)
    return [len(letters & set(passage)) / 30 for passage in passages]


@fs.function(launcher="inline", max_running=4, replicas=4)
async def by_words(words: fs.Stream[str]) -> list[int]:
    """Passages by words, `WORD_S` for each: fed while the query is written, where it may be."""
    scores = np.zeros(len(passages))
    async for word in words:
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


def app(*, shared: bool, replicas: int, streaming: bool, policy: str = "earliest_root") -> fs.App:
    """The app: one model for all stages, or one for each, with so many replicas each."""
    patient = {"max_waiting": 100_000, "max_wait_s": 3600.0}
    words: dict[str, Any] = {"engine": ENGINE, "replicas": replicas, "policy": policy, "queue": patient}
    words["foresight"] = {"predictor": "off"}
    models = {"chat": ScriptedLLM(**words)} if shared else {stage: ScriptedLLM(**words) for stage in STAGES}
    of = {stage: models["chat"] if shared else models[stage] for stage in STAGES}
    checked = fact_checker(of, meaning, by_words, streaming=streaming, max_running=100_000)
    served: dict[str, Any] = {"checked": checked, "meaning": meaning, "by_words": by_words, **models}
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


LEAST = 40
"""Requests of a load, however low its rate."""


def highest_rate(words: dict[str, Any], target_s: float, seconds: float, steps: int) -> tuple[float, Point]:
    """The highest rate whose mean latency over `seconds` of arrivals is within the target, and what was seen there.

    Doubled until it is not, then found by halving the interval so often.
    """

    def at(rate: float) -> Point:
        return play(app(**words), rate, max(LEAST, int(rate * seconds)))

    low, found = 0.5, at(0.5)
    high = 2 * low
    while (point := at(high)).mean <= target_s:
        low, high, found = high, 2 * high, point
    for _ in range(steps):
        middle = (low + high) / 2
        if (point := at(middle)).mean <= target_s:
            low, found = middle, point
        else:
            high = middle
    return low, found


def compare(seconds: float, shared: bool, replicas: int = 1, steps: int = 4) -> dict[str, float]:
    """Streaming against not, at a target of twice the unloaded latency of the latter, over so many seconds of load."""
    on: dict[str, Any] = {"shared": shared, "replicas": replicas, "streaming": True}
    off: dict[str, Any] = {**on, "streaming": False}
    slow = play(app(**off), 0.01, LEAST)
    quick = play(app(**on), 0.01, LEAST)
    target = 2 * slow.mean
    rate_on, _ = highest_rate(on, target, seconds, steps)
    rate_off, at_off = highest_rate(off, target, seconds, steps)
    loaded = play(app(**on), rate_off, max(LEAST, int(rate_off * seconds)))
    return {
        "unloaded_on_s": quick.mean,
        "unloaded_off_s": slow.mean,
        "first_on_s": float(np.mean(quick.firsts)),
        "first_off_s": float(np.mean(slow.firsts)),
        "rate_on": rate_on,
        "rate_off": rate_off,
        "p99_off_s": at_off.percentile(99),
        "p99_on_s": loaded.percentile(99),
    }


def same(points: Sequence[Point]) -> bool:
    """Whether all of them came to the same results."""
    return all(point.results == points[0].results for point in points)
