"""Continuous batching with foresight, beside first come, first served: the same engine, slots, deadlines and shedding.

The real server with the embedded engine; every answer has the length that its prompt's real answer had, which the
worker alone knows (see `replay`). Two mixes: six applications, and conversations. Open loads at shares of the measured
saturation, each run to empty on a fresh server; the sides take turns. Every request's deadline is twice its unloaded
time plus a second. Both sides predict alike and shed alike: who cannot be served in time is not begun. The engine has
one core, gateway and clients the other.

`--sides fcfs,fcfs` measures the same twice: how far from 1 its ratios are is the noise of the others.
`--sides ours_foreseen,fcfs_bounded` is what one would choose for goodput, beside the default.
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
import numpy as np

from benchmarks import continuous_report as figures
from benchmarks import mixes, replay
from benchmarks.common import Report, arguments, console
from benchmarks.continuous_load import FACTOR, Load, Trial, Unloaded, closed, fit, measure, share_before
from benchmarks.mixes import Mix
from benchmarks.seeding import learn
from benchmarks.servers import Server, foreserve

ENGINE, REST = {0}, {1}
SLOTS = 8
"""As many as an operator gives it whose deadlines are twice the unloaded time: a step of a full house takes about that.
With more, most that runs expires while it runs, on both sides, and nothing waits that could be ordered."""
MAX_TOKENS = 1024
"""What every request asks at most, as clients do that do not know better."""

KV_GB = 1.0
QUEUE = {"max_waiting": 1024, "max_wait_s": 60.0}
WARM = 24
"""Requests of the training part that each server answers before it is measured: its pace is then known to it."""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared. All predict alike, from the training part, so that shedding knows the same everywhere.

    `admission` is what refuses at the door: `patient` leaves it to the deadline. `kv` is how room for answers is kept.
    """

    policy: str
    admission: str = "patient"
    kv: str = "worst_case"
    options: dict[str, Any] = {}
    predictor: str = "fast"

    def words(self) -> dict[str, Any]:
        """For `LLM(...)`."""
        return {
            "engine": "openvino", "threads": 1, "max_running": SLOTS, "kv_cache_gb": KV_GB, "policy": self.policy,
            "policy_options": self.options, "queue": {**QUEUE, "admission": self.admission},
            "foresight": {"predictor": self.predictor, "kv": self.kv},
        }  # fmt: skip


FCFS = Side(policy="fcfs")
SIDES = {
    "ours": Side(policy="hrrn", kv="forecast"),
    "fcfs": FCFS,
    "ours_foreseen": Side(policy="hrrn", kv="forecast", admission="foreseen"),
    "fcfs_foreseen": Side(policy="fcfs", admission="foreseen"),
    "fcfs_bounded": Side(policy="fcfs", admission="bounded"),
}

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


class Plan(msgspec.Struct, frozen=True):
    """What is run of one mix: requests of a run, and repetitions for each share of saturation.

    The machine is measured with `alone` requests one after the other, then with `full` in a full house.
    """

    requests: int
    repetitions: dict[float, int]
    alone: int
    full: int


PLANS = {
    "apps": Plan(400, {0.7: 1, 0.95: 2, 1.3: 4}, alone=40, full=240),
    "conversations": Plan(80, {1.3: 2}, alone=14, full=60),
}
"""About 25 minutes on two idle cores; the most repetitions are where the claim is. Even numbers where it matters: the
sides take turns in who goes first."""

QUICK = {"apps": Plan(80, {1.3: 1}, alone=10, full=60)}
IDLE_LOAD = 0.5


class Bench:
    """Servers for one mix: their true lengths, and their state folders as they are before a run."""

    def __init__(self, mix: Mix, folder: Path) -> None:
        self.mix = mix
        self._folder = folder
        self._truths = folder / "truths.json"
        self._runs = 0
        replay.write(self._truths, mix.truths())

    def server(self, side: Side, stack: ExitStack) -> Server:
        """A fresh one, which has learned from the training part and nothing of any other run."""
        self._runs += 1
        folder = self._folder / f"run{self._runs}"
        shutil.copytree(self._learned(), folder)
        app = folder / "app.py"
        app.write_text(
            APP.format(
                factory=replay.FACTORY, truths=str(self._truths), words=side.words(), state={"folder": str(folder)}
            )
        )
        return stack.enter_context(foreserve(str(app), cores=REST, engine_cores=ENGINE))

    def _learned(self) -> Path:
        """The state folder before a run; made once."""
        folder = self._folder / "learned"
        if not folder.exists():
            folder.mkdir()
            asks = self.mix.draw_train(len(self.mix.train), 0)
            for line in learn(asks, folder, MAX_TOKENS):
                console.print(f"  learned: {line}", highlight=False, markup=False)
        return folder


def calibrate(bench: Bench, chosen: Plan) -> tuple[Unloaded, float]:
    """What a request takes on an idle server, and how much of that a full house does in a second (first come).

    Counted as unloaded seconds, so that a draw of longer answers is no greater load than one of shorter ones.
    """
    with ExitStack() as stack:
        server = bench.server(FCFS, stack)
        closed(server.url, bench.mix.draw_train(WARM, 9), SLOTS, MAX_TOKENS, REST)
        alone = closed(server.url, bench.mix.draw_train(chosen.alone, 10), 1, MAX_TOKENS, REST)
        full = closed(server.url, bench.mix.draw_train(chosen.full, 11), SLOTS + 8, MAX_TOKENS, REST)
    unloaded = fit(alone)
    last = max(result.sent for _, result in full)  # until then every slot is taken
    return unloaded, sum(unloaded.seconds(ask) * share_before(last, result) for ask, result in full) / last


def trial(bench: Bench, side: Side, load: Load, unloaded: Unloaded) -> Trial:
    """One run of one side, on a server of its own."""
    with ExitStack() as stack:
        server = bench.server(side, stack)
        closed(server.url, bench.mix.draw_train(WARM, load.seed + 100), SLOTS, MAX_TOKENS, REST)
        return measure(server.url, bench.mix.draw(load.requests, load.seed), load, unloaded, MAX_TOKENS, REST)


def options(parser: argparse.ArgumentParser) -> None:
    """What can be chosen beside `--quick`."""
    parser.add_argument("--sides", default="ours,fcfs", help=f"two of {', '.join(SIDES)}: first and second")
    parser.add_argument("--mix", choices=sorted(mixes.MIXES), help="one of the mixes alone")
    parser.add_argument("--loads", help="shares of saturation, such as 0.95,1.3, in place of the usual ones")
    parser.add_argument("--factor", type=float, default=FACTOR, help="deadlines in unloaded times; 100 is nearly none")
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
        "deadline_factor": args.factor,
        "answer_cap": mixes.ANSWER_CAP,
        "prompt_cap": mixes.PROMPT_CAP,
        "words": msgspec.to_builtins(sides),
    }
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if (load := os.getloadavg()[0]) > IDLE_LOAD:
        report.note(
            f"the machine was not idle when this began (load average {load:.1f}): repeat it before you believe it"
        )
    plans = QUICK if args.quick else PLANS
    for name in [args.mix] if args.mix else plans:
        planned = plans.get(name, PLANS[name])
        loads = [float(share) for share in args.loads.split(",")] if args.loads else list(planned.repetitions)
        repetitions = {load: args.repetitions or planned.repetitions.get(load, 1) for load in loads}
        chosen = msgspec.structs.replace(planned, requests=args.requests or planned.requests, repetitions=repetitions)
        figures.add(report, name, run(name, sides, chosen, args.factor, report), names)
    figures.tell(report)
    report.finish(args.json)


def run(
    name: str, sides: Sequence[Side], chosen: Plan, factor: float, report: Report
) -> dict[float, list[tuple[Trial, Trial]]]:
    """For each load, the trials of both sides, repetition by repetition; who begins changes from one to the next."""
    with tempfile.TemporaryDirectory(prefix="foreserve-continuous-") as folder:
        bench = Bench(mixes.MIXES[name](), Path(folder))
        unloaded, saturation = calibrate(bench, chosen)
        mean_s = float(np.mean([unloaded.seconds(ask) for ask in bench.mix.held_out]))
        report.settings[name] = {
            "requests": chosen.requests, "repetitions": {str(load): n for load, n in chosen.repetitions.items()},
            "saturation_per_s": saturation / mean_s, "unloaded": msgspec.to_builtins(unloaded),
        }  # fmt: skip
        console.print(f"{name}: saturation {saturation / mean_s:.2f} requests/s; {unloaded}", highlight=False)
        runs: dict[float, list[tuple[Trial, Trial]]] = {load: [] for load in chosen.repetitions}
        for repetition in range(max(chosen.repetitions.values())):
            for share in (load for load, times in chosen.repetitions.items() if repetition < times):
                asks = bench.mix.draw(chosen.requests, repetition)
                rate = share * saturation * len(asks) / sum(unloaded.seconds(ask) for ask in asks)
                load = Load(rate=rate, requests=len(asks), seed=repetition, factor=factor)
                order = (0, 1) if repetition % 2 == 0 else (1, 0)
                done = {side: trial(bench, sides[side], load, unloaded) for side in order}
                runs[share].append((done[0], done[1]))
                console.print(f"  {name} at {share:g}: {done[0]} | {done[1]}", highlight=False, markup=False)
    return runs


if __name__ == "__main__":
    main()
