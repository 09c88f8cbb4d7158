"""What is routed in the routing benchmark: requests with predicted lengths, when they come, and engines' profiles.

Chats: first turns of ShareGPT; lengths are predicted from the text by a model of the fast tier that has learned from
the other half of them. Mooncake: that trace's own rows with their prefix blocks; lengths by histograms of its first
half.
"""

from __future__ import annotations

import msgspec
import numpy as np

from benchmarks import data, pairs
from benchmarks.common import Report
from benchmarks.length_sets import Arrivals, items, samples
from foreserve.core import Length, Prefix
from foreserve.engines.profile import DecodeTable, EngineProfile, PrefillTable
from foreserve.foresight.length import Asked, Ended
from foreserve.foresight.length_predictor import Predictor
from foreserve.foresight.length_training import train
from foreserve.loadgen.arrivals import generator, poisson, trace
from foreserve.services.prefixes import of_hashes
from foreserve.traces.open import open_trace

CONTEXT = 4096
KV_TOKENS = 36_896
SLOTS = 128
READ_S = 0.018
"""To read the weights once."""

SHORTEST = 16
"""Tokens of a prompt or an answer; with `CONTEXT` the filter of PreServe's evaluation."""

MOONCAKE = "traces/mooncake/synthetic_trace.jsonl.xz"
LONG_CONTEXT, LONG_KV, LONG_READS = 200_000, 600_000, 20_000.0
"""Of engines for Mooncake's long prompts: tokens, tokens, and tokens of prompts read in a second."""


class Case(msgspec.Struct, frozen=True):
    """One request: its true lengths in tokens, what is predicted of the answer, how the prompt begins.

    `blocks` are all that the engine can find in its cache, of `prefix.block_tokens` each; `prefix` is what is told.
    """

    prompt: int
    output: int
    predicted: Length
    prefix: Prefix | None = None
    blocks: tuple[int, ...] = ()


def chats(report: Report, half: int, seed: int = 0) -> list[Case]:
    """Held-out chats; those of `half` 0 are for choosing weights, those of 1 for what is reported."""
    if not pairs.available("sharegpt"):
        report.note("no data here (FORESERVE_DATA): lengths are log-normal, predictions wrong by a factor of 1.8")
        rng = generator(seed)
        drawn = zip(rng.lognormal(4.3, 1.1, 4000), rng.lognormal(5.4, 0.9, 4000), rng.normal(0, 0.6, 4000), strict=True)
        made = [(int(p) + 1, int(o) + 1, _guess(float(o * np.exp(off)))) for p, o, off in drawn]
    else:
        found = items("sharegpt", 6000, None)
        cut = len(found) // 2
        learned, held = samples(Arrivals(found[:cut], found[cut:]), full=False)
        predicted = train(learned, seed=seed).predict([sample.features for sample in held])
        made = [
            (item.asked.prompt_tokens, item.tokens, length) for item, length in zip(found[cut:], predicted, strict=True)
        ]
        report.note(
            "requests: first turns of ShareGPT, held out, with prompts and answers of at least 16 and together at most "
            "4,096 tokens; lengths predicted from the text by a fast tier trained on as many others"
        )
    usable = [
        Case(prompt, output, _within(length, CONTEXT - prompt))
        for prompt, output, length in made
        if prompt >= SHORTEST and output >= SHORTEST and prompt + output <= CONTEXT
    ]
    return usable[half::2]


def mooncake(report: Report) -> tuple[list[Case], list[float]]:
    """Mooncake's rows with their times; none without the data."""
    path = data.folder() / MOONCAKE
    if not path.exists():
        report.note("no Mooncake trace here (FORESERVE_DATA): prefix affinity is not measured")
        return [], []
    opened = open_trace(path)
    rows = [row for row in opened if row.output_tokens and row.input_tokens + row.output_tokens < LONG_CONTEXT]
    predictor = Predictor()
    asked = [
        Asked(
            instruction="", text="", input_tokens=row.input_tokens, prompt_tokens=row.input_tokens,
            most=LONG_CONTEXT - row.input_tokens,
        )
        for row in rows
    ]  # fmt: skip
    for one, row in zip(asked[: len(rows) // 2], rows, strict=False):
        predictor.learn(one, Ended(tokens=row.output_tokens))
    cases = [
        Case(row.input_tokens, row.output_tokens, length, of_hashes(row.prefix, opened.header.block_tokens), row.prefix)
        for row, length in zip(rows, predictor.predict(asked), strict=True)
    ]
    return cases, [row.arrival for row in rows]


def times(arrivals: str, count: int, rate: float, replicas: int, half: int, seed: int) -> list[float]:
    """`count` times in seconds at `rate` a second in all: `poisson`, or `azure`.

    The latter are gaps of one half of the Azure conversation trace, scaled, from a row that is drawn; for more than
    four replicas as many such streams as make up their load, so that what comes to four keeps its bursts.
    """
    rng = generator(1000 * half + seed)
    file = data.trace("azure_conv") if arrivals == "azure" else None
    if file is None:
        drawn = poisson(rate, rng)
        return [next(drawn).at for _ in range(count)]
    gaps = np.diff([row.at for row in trace(file)])
    gaps = np.array_split(gaps, 2)[half]
    streams = max(1, replicas // 4)
    each = []
    for _ in range(streams):
        some = np.resize(np.roll(gaps, -int(rng.integers(len(gaps)))), -(-count // streams))
        each.append(np.cumsum(some / some.mean() / (rate / streams)))
    merged: list[float] = np.sort(np.concatenate(each))[:count].tolist()
    return merged


def profile(*, long: bool = False) -> EngineProfile:
    """Like Llama-2-7B on vLLM and a card of 48 GB: 128 slots, 36,896 tokens of KV cache, steps of up to 8,192 tokens.

    A decode step reads the weights (18 ms) and every KV entry (0.75 us a token), and costs 0.12 ms for each sequence;
    prompts are read at 5,500 tokens a second, none in less time than the weights. `long` is a node for long prompts,
    with a prefix cache.
    """
    sequences, context = [1, 16, 32, 64, 128], [0, 128, 512, 1024, 4096, 65_536]
    reads = LONG_READS if long else 5500.0
    entry_s = 0.06e-6 if long else 0.75e-6
    most = 8192
    return EngineProfile(
        name="long prompts" if long else "llama-2-7b",
        slots=SLOTS,
        kv_tokens=LONG_KV if long else KV_TOKENS,
        context_tokens=LONG_CONTEXT if long else CONTEXT,
        prefill=PrefillTable(
            tokens=[1, int(READ_S * reads), most],
            before=[0, CONTEXT],
            seconds=[[READ_S, READ_S], [READ_S, READ_S], [most / reads, most / reads * (1.02 if long else 1.25)]],
        ),
        decode=DecodeTable(
            sequences=sequences,
            context=context,
            seconds=[[READ_S + 0.00012 * n + entry_s * n * held for held in context] for n in sequences],
        ),
        max_batched_tokens=most,
        block_tokens=16,
        prefix_caching=long,
    )


def _guess(mean: float) -> Length:
    return Length(mean=1.2 * mean, p50=mean, p80=1.65 * mean, p95=2.7 * mean, source="fast")


def _within(length: Length, most: int) -> Length:
    mean, p50, p80, p95 = (max(1.0, min(n, float(most))) for n in (length.mean, length.p50, length.p80, length.p95))
    return Length(mean=mean, p50=p50, p80=p80, p95=p95, source=length.source)
