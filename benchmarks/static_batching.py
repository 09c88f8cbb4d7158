"""Static batches with foresight, beside first-come batches of a fixed size: the same engine, memory and requests.

The real server with the transformers engine: a batch runs until its longest answer ends, in a memory of a fixed number
of tokens, padding included. Every answer has the length that its prompt's real answer had, which the worker alone knows
(see `replay`); everybody else sees a limit of 1,024 tokens. Six applications in equal parts, an open load far past
saturation, each run to empty on a fresh server, the same requests for each side.

A cautious operator sets the fixed size to the memory over the worst case, 1,024 prompt and 1,024 answer tokens; a
daring one sweeps it. The ablations: GLP has predicted lengths and the fixed size, ABP adaptive batches in order of
arrival. `python -m benchmarks.static_batching --sides fixed,magnus` compares these alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop

from benchmarks import mixes, replay
from benchmarks.common import Report, arguments, bars, console, picture, ratios
from benchmarks.load import send
from benchmarks.mixes import Ask, Mix
from benchmarks.seeding import learn
from benchmarks.servers import Server, foreserve
from foreserve.loadgen.arrivals import generator, poisson
from foreserve.loadgen.client import ClientOptions
from foreserve.loadgen.records import Ending, Result
from foreserve.loadgen.run import Limits

LONGEST = 1024
"""Tokens that a prompt and an answer may have, as the operator knows it."""

CAUTIOUS = 7
"""Requests of the worst case that fit the memory; as many as the paper's baseline has."""

KV_TOKENS = CAUTIOUS * 2 * LONGEST
ROWS = 64
RATE = 12.0
"""Requests a second, several times of what any side serves."""

SWEPT = (16, 32)
PATIENCE_S = 1500.0
"""Bounds a run; nothing is shed before."""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared: a batch policy with its options, and whether lengths are foreseen."""

    policy: str
    options: dict[str, Any] = {}
    rows: int = ROWS
    foresees: bool = True


def fixed(size: int) -> Side:
    """First-come batches of one size."""
    return Side(policy="fixed", options={"size": size}, rows=size, foresees=False)


SIDES = {
    "fixed": fixed(CAUTIOUS),
    **{f"fixed {size}": fixed(size) for size in SWEPT},
    "GLP": Side(policy="magnus", options={"adaptive": False, "size": CAUTIOUS, "order": "fcfs"}),
    "ABP": Side(policy="magnus", options={"order": "fcfs"}),
    "magnus": Side(policy="magnus"),
}

APP = """
import msgspec
import foreserve as fs
from foreserve.core import Price

class Replayed(fs.LLM):
    def engines(self):
        options = {{"truths": {truths!r}, "steps": {steps!r}, "kv_tokens": {kv_tokens}}}
        return [
            msgspec.structs.replace(spec, factory={factory!r}, options={{**spec.options, **options}})
            for spec in super().engines()
        ]

    def price(self, request):
        # The size of a batch is its only bound where lengths are not foreseen.
        price = super().price(request)
        return price if {foresees} else Price(cost={{"slots": 1.0}})

app = fs.App(chat=Replayed("smollm2", **{words!r}), state={state!r})
"""


class Trial(msgspec.Struct, frozen=True):
    """What came of one run. `computed` are all tokens that the engine worked on, those after an answer's end too."""

    responses_s: list[float]
    seconds: float
    valid: int
    computed: int
    batches: list[int]
    lost: int

    @property
    def per_s(self) -> float:
        """Requests done a second."""
        return len(self.responses_s) / self.seconds

    @property
    def mean_s(self) -> float:
        return float(np.mean(self.responses_s))

    @property
    def p95_s(self) -> float:
        return float(np.percentile(self.responses_s, 95))

    def __str__(self) -> str:
        return (
            f"{self.per_s:.2f} requests/s, valid tokens {self.valid / self.seconds:.0f}/s of"
            f" {self.computed / self.seconds:.0f}/s, mean {self.mean_s:.1f} s, p95 {self.p95_s:.1f} s,"
            f" {len(self.batches)} batches of {np.mean(self.batches):.1f}, {self.lost} lost"
        )


class Bench:
    """The mix, its true lengths, and what a predictor has learned of its training part."""

    def __init__(self, mix: Mix, folder: Path) -> None:
        self.mix = mix
        self._folder = folder
        self._runs = 0
        self._truths = folder / "truths.json"
        replay.write(self._truths, mix.truths())
        self._learned = folder / "learned"
        self._learned.mkdir()
        for line in learn(mix.draw_train(len(mix.train), 0), self._learned, LONGEST):
            console.print(f"  learned: {line}", highlight=False, markup=False)

    def trial(self, side: Side, requests: int, seed: int) -> Trial:
        """One run of one side on a fresh server, which has learned nothing of any other run."""
        self._runs += 1
        folder = self._folder / f"run{self._runs}"
        shutil.copytree(self._learned, folder)
        steps = folder / "steps"
        words = {
            "engine": "transformers", "max_running": side.rows, "policy": side.policy, "policy_options": side.options,
            "foresight": {"predictor": "fast" if side.foresees else "off", "train_s": 100_000.0},
            "queue": {"max_waiting": 100_000, "max_wait_s": PATIENCE_S, "admission": "always"},
        }  # fmt: skip
        app = folder / "app.py"
        app.write_text(
            APP.format(
                factory=replay.STATIC_FACTORY, truths=str(self._truths), steps=str(steps), kv_tokens=KV_TOKENS,
                foresees=side.foresees, words=words, state={"folder": str(folder)},
            )
        )  # fmt: skip
        with ExitStack() as stack:
            server = stack.enter_context(foreserve(str(app)))
            warm = self.mix.draw_train(8, seed + 100)
            _send(server, warm, RATE, seed)
            seen = len(steps.read_text().splitlines())
            asks = self.mix.draw(requests, seed)
            results = _send(server, asks, RATE, seed)
        lines = [line.split() for line in steps.read_text().splitlines()[seen:]]
        return trial_of(asks, results, [(int(rows), int(count)) for rows, count in lines])


def trial_of(asks: Sequence[Ask], results: Sequence[Result], batches: Sequence[tuple[int, int]]) -> Trial:
    """The figures of a run; `batches` are rows and steps."""
    done = [result for result in results if result.ending is Ending.DONE]
    if wrong := [r for r in done if r.output_tokens != asks[r.index].output_tokens and r.finish_reason == "stop"]:
        raise RuntimeError(f"{wrong[0].output_tokens} tokens, {asks[wrong[0].index].output_tokens} are true")
    return Trial(
        responses_s=[result.ended - result.due for result in done],
        seconds=max(result.ended for result in done) - min(result.due for result in results),
        valid=sum(asks[result.index].output_tokens for result in done),
        computed=sum(rows * steps for rows, steps in batches),
        batches=[rows for rows, _ in batches],
        lost=len(results) - len(done),
    )


def _send(server: Server, asks: Sequence[Ask], rate: float, seed: int) -> list[Result]:
    """A Poisson process of `rate` a second, until all have ended."""
    options = ClientOptions(
        url=server.url, model="chat", endpoint="chat", max_tokens=LONGEST, extra={"temperature": 0},
        timeout_s=PATIENCE_S,
    )  # fmt: skip
    limits = Limits(requests=len(asks), drain_s=PATIENCE_S, max_in_flight=100_000)
    prompts = [ask.as_prompt() for ask in asks]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(send(options, prompts, poisson(rate, generator(seed)), limits)).results


def figures(report: Report, trials: dict[str, list[Trial]]) -> None:
    """Each side's own, and ours over theirs, run by run where both were run as often."""
    for name, runs in trials.items():
        key = name.replace(" ", "_").lower()
        report.add(f"{key}_requests_per_s", [run.per_s for run in runs])
        report.add(f"{key}_valid_tokens_per_s", [run.valid / run.seconds for run in runs])
        report.add(f"{key}_tokens_per_s", [run.computed / run.seconds for run in runs])
        report.add(f"{key}_mean_response_s", [run.mean_s for run in runs])
        report.add(f"{key}_p95_response_s", [run.p95_s for run in runs])
        report.add(f"{key}_mean_batch", [float(np.mean(run.batches)) for run in runs])
        if lost := sum(run.lost for run in runs):
            report.note(f"{name}: {lost} requests were not done")
    ours, theirs = trials.get("magnus", []), trials.get("fixed", [])
    if not ours or not theirs:
        return
    pairs = list(zip(ours, theirs, strict=True))
    report.add("throughput_vs_fixed", ratios([a.per_s for a, _ in pairs], [b.per_s for _, b in pairs]), "up to 3.34")
    report.add("mean_response_vs_fixed", [a.mean_s / b.mean_s for a, b in pairs], "down to 0.103")
    report.add("p95_response_vs_fixed", [a.p95_s / b.p95_s for a, b in pairs])
    swept = {name: runs[0] for name, runs in trials.items() if name.startswith("fixed")}
    best = max(swept, key=lambda name: swept[name].per_s)
    report.add("throughput_vs_best_fixed", ours[0].per_s / swept[best].per_s)
    report.note(f"the best fixed size: {best.removeprefix('fixed').strip() or CAUTIOUS}")
    for name in ("GLP", "ABP"):
        for run in trials.get(name, [])[:1]:
            report.add(f"throughput_vs_{name.lower()}", ours[0].per_s / run.per_s)
            report.add(f"mean_response_vs_{name.lower()}", ours[0].mean_s / run.mean_s)


def options(parser: argparse.ArgumentParser) -> None:
    """What can be chosen beside `--quick`."""
    parser.add_argument("--sides", help=f"of {', '.join(SIDES)}, separated by commas; all in the full form")
    parser.add_argument("--requests", type=int, help="requests of a run, in place of the usual number")
    parser.add_argument("--once", action="store_true", help="no side twice")


def main() -> None:
    """Run it."""
    args = arguments(__doc__, more=options)
    names = args.sides.split(",") if args.sides else ["fixed", "magnus"] if args.quick else list(SIDES)
    requests = args.requests or (40 if args.quick else 240)
    settings = {"kv_tokens": KV_TOKENS, "rows": ROWS, "fixed": CAUTIOUS, "rate_per_s": RATE, "requests": requests}
    report = Report("static_batching", settings | {"model": "SmolLM2-135M-Instruct bf16", "max_tokens": LONGEST})
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    trials: dict[str, list[Trial]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(mixes.apps(), Path(folder))
        for repetition in range(1 if args.quick or args.once else 2):
            for name in names:
                # The two that the claims are of are repeated.
                if repetition == 0 or name in ("fixed", "magnus"):
                    trials[name].append(bench.trial(SIDES[name], requests, repetition))
                    console.print(f"  {name}: {trials[name][-1]}", highlight=False, markup=False)
    figures(report, trials)
    with picture("static_batching", "Static batches of one engine, six applications", columns=2) as axes:
        bars(axes[0], {name: [run.per_s for run in runs] for name, runs in trials.items()}, "requests/s")
        bars(axes[1], {name: [run.mean_s for run in runs] for name, runs in trials.items()}, "mean response, s")
    report.finish(args.json)


if __name__ == "__main__":
    main()
