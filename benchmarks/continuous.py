"""Continuous batching with foresight, beside first come, first served: the same engine, slots, deadlines and shedding.

The real server with the embedded engine; every answer has the length that its prompt's real answer had, which the
worker alone knows (see `replay`). Two mixes: six applications, and conversations. Open loads at shares of the measured
saturation, each run to empty on a fresh server; the sides take turns. Every request's deadline is twice its unloaded
time plus a second. The engine has one core, gateway and clients the other.

`--sides fcfs,fcfs` measures the same twice: how far from 1 its ratios are is the noise of the others.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import continuous_report as figures
from benchmarks import mixes, replay
from benchmarks.common import Report, arguments, console
from benchmarks.continuous_load import Load, Trial, Unloaded, closed, fit, measure
from benchmarks.mixes import Ask, Mix
from benchmarks.servers import Server, foreserve

ENGINE, REST = {0}, {1}
SLOTS = 16
MAX_TOKENS = 1024
"""What every request asks at most, as clients do that do not know better."""

KV_GB = 1.0
QUEUE = {"max_waiting": 1024, "max_wait_s": 60.0}
WARM = 48
"""Requests of the training part that each server answers before it is measured: its pace is then known to it."""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared: words of `LLM(...)`, and whether its predictor has learned from the training part before."""

    words: dict[str, Any]
    learns: bool = False


FCFS = Side(words={"policy": "fcfs", "foresight": {"predictor": "off", "kv": "worst_case"}})
OURS = Side(words={"policy": "hrrn", "foresight": {"predictor": "fast", "kv": "forecast"}}, learns=True)
SIDES = {"fcfs": FCFS, "ours": OURS}

APP = """
import msgspec
import foreserve as fs

class Replayed(fs.LLM):
    def engines(self):
        return [
            msgspec.structs.replace(spec, factory={factory!r}, options={{**spec.options, "truths": {truths!r}}})
            for spec in super().engines()
        ]

app = fs.App(chat=Replayed("smollm2", **{words!r}), state={state!r})
"""


class Bench:
    """Servers for one mix: their true lengths, and their state folders as they are before a run."""

    def __init__(self, mix: Mix, folder: Path) -> None:
        self.mix = mix
        self._folder = folder
        self._truths = folder / "truths.json"
        self._runs = 0
        replay.write(self._truths, mix.truths())

    def server(self, side: Side, stack: ExitStack) -> Server:
        """A fresh one, which has learned what its side may and nothing of any other run."""
        self._runs += 1
        folder = self._folder / f"run{self._runs}"
        shutil.copytree(self._learned(side), folder)
        words = {
            "engine": "openvino", "threads": 1, "max_running": SLOTS, "kv_cache_gb": KV_GB, "queue": QUEUE, **side.words
        }  # fmt: skip
        state = {"folder": str(folder), "history": False}
        app = folder / "app.py"
        app.write_text(APP.format(factory=replay.FACTORY, truths=str(self._truths), words=words, state=state))
        return stack.enter_context(foreserve(str(app), cores=REST, engine_cores=ENGINE))

    def _learned(self, side: Side) -> Path:
        """The state folder of a side before a run; made once."""
        folder = self._folder / ("learned" if side.learns else "plain")
        if not folder.exists():
            folder.mkdir()
            if side.learns:
                learn(self.mix.train, folder)
        return folder


def learn(asks: Sequence[Ask], folder: Path) -> None:
    """Let a predictor learn from the training part, into a state folder. Until that can be done it begins with none."""


def calibrate(bench: Bench, quick: bool) -> tuple[Unloaded, float]:
    """What a request takes on an idle server, and how many a second a full house ends (first come)."""
    with ExitStack() as stack:
        server = bench.server(FCFS, stack)
        closed(server.url, bench.mix.draw_train(WARM, 9), SLOTS, MAX_TOKENS, REST)
        alone = closed(server.url, bench.mix.draw_train(12 if quick else 40, 10), 1, MAX_TOKENS, REST)
        count = 64 if quick else 320
        full = closed(server.url, bench.mix.draw_train(count, 11), SLOTS + 8, MAX_TOKENS, REST)
        last = max(result.sent for _, result in full)
        ended = sum(result.ended <= last for _, result in full)
        return fit(alone), ended / last


def trial(bench: Bench, side: Side, load: Load, unloaded: Unloaded) -> Trial:
    """One run of one side, on a server of its own."""
    with ExitStack() as stack:
        server = bench.server(side, stack)
        closed(server.url, bench.mix.draw_train(WARM, load.seed + 100), SLOTS, MAX_TOKENS, REST)
        return measure(server.url, bench.mix.draw(load.requests, load.seed), load, unloaded, MAX_TOKENS, REST)


def plan(quick: bool) -> dict[str, tuple[list[float], int, int]]:
    """For each mix: the shares of saturation, how many requests, how many repetitions."""
    if quick:
        return {"apps": ([1.3], 120, 1)}
    return {"apps": ([0.7, 0.95, 1.3], 400, 3), "conversations": ([1.3], 150, 3)}


def options(parser: argparse.ArgumentParser) -> None:
    """What can be chosen beside `--quick`."""
    parser.add_argument("--sides", default="ours,fcfs", help=f"two of {', '.join(SIDES)}: first and second")
    parser.add_argument("--mix", choices=sorted(mixes.MIXES), help="one of the mixes alone")
    parser.add_argument("--loads", help="shares of saturation, such as 0.95,1.3, in place of the usual ones")
    parser.add_argument("--requests", type=int, help="requests of a run, in place of the usual number")
    parser.add_argument("--repetitions", type=int, help="in place of the usual number")


def main() -> None:
    """Run it."""
    args = arguments(__doc__, more=options)
    names = args.sides.split(",")
    sides = [SIDES[name] for name in names]
    if names[0] == names[1]:
        names[0] += "_again"
    report = Report("continuous", {"slots": SLOTS, "kv_cache_gb": KV_GB, "max_tokens": MAX_TOKENS, "sides": names})
    report.settings |= {
        "answer_cap": mixes.ANSWER_CAP,
        "prompt_cap": mixes.PROMPT_CAP,
        "words": msgspec.to_builtins(sides),
    }
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    for name, (loads, requests, repetitions) in plan(args.quick).items():
        if args.mix not in (None, name):
            continue
        chosen = [float(share) for share in args.loads.split(",")] if args.loads else loads
        runs = run(name, sides, chosen, args.requests or requests, args.repetitions or repetitions, args.quick, report)
        figures.add(report, name, runs, names)
    figures.tell(report)
    report.finish(args.json)


def run(
    name: str,
    sides: Sequence[Side],
    loads: Sequence[float],
    requests: int,
    repetitions: int,
    quick: bool,
    report: Report,
) -> dict[float, list[tuple[Trial, Trial]]]:
    """For each load, the trials of both sides, repetition by repetition; who begins changes from one to the next."""
    with tempfile.TemporaryDirectory(prefix="foreserve-continuous-") as folder:
        bench = Bench(mixes.MIXES[name](), Path(folder))
        unloaded, saturation = calibrate(bench, quick)
        report.settings[name] = {
            "saturation_per_s": saturation, "requests": requests, "repetitions": repetitions, "loads": list(loads),
            "unloaded": msgspec.to_builtins(unloaded),
        }  # fmt: skip
        console.print(f"{name}: saturation {saturation:.2f} requests/s; unloaded {unloaded}", highlight=False)
        runs: dict[float, list[tuple[Trial, Trial]]] = {load: [] for load in loads}
        for repetition in range(repetitions):
            for share in loads:
                load = Load(rate=share * saturation, requests=requests, seed=repetition)
                first, second = (0, 1) if repetition % 2 == 0 else (1, 0)
                done = {side: trial(bench, sides[side], load, unloaded) for side in (first, second)}
                runs[share].append((done[0], done[1]))
                console.print(f"  {name} at {share:g}: {done[0]} | {done[1]}", highlight=False, markup=False)
    return runs


if __name__ == "__main__":
    main()
