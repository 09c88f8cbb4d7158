"""The simulator beside the real server: the same workload live, live again, and simulated from a measured profile.

Live is the app as it is served: gateway, dispatcher with its default policies, the embedded engine in a worker process
on a core of its own. Prompts are real and every answer has the length that its prompt's real answer had, which the
worker alone knows (see `replay`). The engine is calibrated beforehand, on random tokens. The simulation plays the same
arrivals and lengths to the same app on the virtual clock. Open loads at shares of the measured saturation.

Foresight is on and starts cold on both sides: a trace has no text, so what a live service would have learned from text
before could not be given to both alike.

What was measured live stays in `--keep`; `--again FOLDER` simulates it anew without running anything live.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import fidelity_report, mixes
from benchmarks.common import RESULTS, Report, arguments, console
from benchmarks.fidelity_live import BLOCK_TOKENS, Live, Went, profiled, rows, times
from benchmarks.fidelity_report import Run
from foreserve.app import App
from foreserve.core import Outcome
from foreserve.engines.profile import EngineProfile
from foreserve.errors import ConfigError
from foreserve.services.llm import LLM
from foreserve.simulation.calibrate_plan import Effort
from foreserve.simulation.need import Need
from foreserve.simulation.profiles import read_profile, save_profile
from foreserve.simulation.study import simulate
from foreserve.traces.open import open_trace
from foreserve.traces.own import write_rows
from foreserve.traces.row import Header

MODEL = "smollm2"
WORDS: dict[str, Any] = {
    "engine": "openvino",
    "threads": 1,
    "max_running": 8,
    "foresight": {"predictor": "fast"},
}
"""For `LLM(...)`: policies, queue and KV cache are the defaults. The predictor is named because `auto` measures which
of two it can afford, and would choose one live and the other on a virtual clock."""

MAX_TOKENS = 1024
"""What every request asks at most."""

SIDES = ("a", "b")
SERVERS = "servers"
"""Where in `--keep` the folders of the live servers lie; it is emptied before they run."""

IDLE_LOAD = 0.5


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run: loads as shares of saturation, requests of each after those that warm up."""

    loads: tuple[float, ...]
    requests: int
    warm: int
    full: int
    effort: Effort


FULL = Plan(loads=(0.4, 0.6, 0.8), requests=320, warm=40, full=160, effort=Effort())
QUICK = Plan(loads=(0.6,), requests=40, warm=8, full=32, effort=Effort(starts=1, seconds=12.0, fine=False))


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What the live half leaves beside its files."""

    loads: list[float]
    warm: int
    saturation_per_s: float
    words: dict[str, Any]
    mix: str


def live(plan: Plan, mix_name: str, keep: Path, *, steps: bool, known: Path | None, control: bool) -> None:
    """Measure the engine unless its profile is `known`, then run every load twice; all is written to `keep`."""
    mix = mixes.MIXES[mix_name]()
    model = LLM(MODEL, **WORDS)
    model.prepare()
    file = keep / "profile.yaml"
    save_profile(profiled(model, plan.effort) if known is None else read_profile(known), file)
    profile = read_profile(file)
    bare = keep / "control.yaml"
    if control:  # what lies around the engine is real there, and need not be told
        save_profile(msgspec.structs.replace(profile, overhead_s=0.0), bare)
    server = Live(mix, MODEL, WORDS, MAX_TOKENS, keep / SERVERS, steps=steps, control=bare if control else None)
    need = Need(profile)

    def cost(asks: list[mixes.Ask]) -> list[float]:
        return [need.seconds(ask.prompt_tokens, ask.output_tokens) for ask in asks]

    asks = mix.draw_train(plan.full, 11)
    saturation = server.saturation(asks, cost(asks), profile.slots)
    drawn = {load: mix.draw(plan.warm + plan.requests, seed) for seed, load in enumerate(plan.loads)}
    per_request = {load: sum(cost(found)) / len(found) for load, found in drawn.items()}
    mean_s = sum(per_request.values()) / len(per_request)
    console.print(f"saturation {saturation / mean_s:.2f} requests/s", highlight=False)
    kept = Kept(loads=list(plan.loads), warm=plan.warm, saturation_per_s=saturation / mean_s, words=WORDS, mix=mix_name)
    (keep / "kept.json").write_bytes(msgspec.json.encode(kept))
    arrivals = {
        load: times(load * saturation / per_request[load], len(found), seed)
        for seed, (load, found) in enumerate(drawn.items())
    }
    for load, found in drawn.items():
        header = Header(name="fidelity", block_tokens=BLOCK_TOKENS)
        write_rows(_trace(keep, load), header, rows(found, arrivals[load], model, MAX_TOKENS))
    for side in SIDES:
        for load, found in drawn.items():
            went = server.run(found, arrivals[load], f"{load:g}.{side}")
            _went(keep, load, side).write_bytes(msgspec.json.encode(went))
            figures = fidelity_report.figures(arrivals[load][plan.warm :], went[plan.warm :])
            console.print(f"  {load:g} live {side}: {_short(figures)}", highlight=False)


def _trace(keep: Path, load: float) -> Path:
    return keep / f"{load:g}.trace.jsonl"


def _went(keep: Path, load: float, side: str) -> Path:
    return keep / f"{load:g}.{side}.json"


def _short(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


def simulated(profile: EngineProfile, kept: Kept, trace_file: Path) -> list[Went]:
    """The same requests on the virtual clock, in order."""
    found: dict[int, Went] = {}

    def ended(outcome: Outcome) -> None:
        found[int(outcome.id[1:])] = Went(
            kind=outcome.kind.value,
            total_s=outcome.ended - outcome.arrival,
            first_s=None if outcome.first is None else outcome.first - outcome.arrival,
            wait_s=None if outcome.started is None else outcome.started - outcome.arrival,
            tokens=int(outcome.usage.get("output_tokens", 0)),
        )

    chat: Any = LLM(MODEL, **kept.words)
    app = App(state={"history": False}, chat=chat)
    simulate(app, {"chat": profile}, open_trace(trace_file), observers=[ended])
    return [found[at] for at in range(len(found))]


def emptied(folder: Path) -> None:
    """There, and with nothing in it."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def again(keep: Path, report: Report) -> None:
    """Simulate what was measured live and compare. Raises ConfigError where there is nothing to compare with."""
    profile = read_profile(keep / "profile.yaml")
    kept = msgspec.json.decode((keep / "kept.json").read_bytes(), type=Kept)
    report.settings |= msgspec.to_builtins(kept)
    runs: dict[float, Run] = {}
    missing: list[str] = []
    for load in kept.loads:
        if lacking := [side for side in SIDES if not _went(keep, load, side).exists()]:
            missing += [str(_went(keep, load, side)) for side in lacking]
            report.note(f"at {load:g} of saturation live did not come to its end: left out")
            continue
        arrivals = [row.arrival for row in open_trace(_trace(keep, load))]
        sides = [msgspec.json.decode(_went(keep, load, side).read_bytes(), type=list[Went]) for side in SIDES]
        went = simulated(profile, kept, _trace(keep, load))
        warm = kept.warm
        runs[load] = Run(arrivals=arrivals[warm:], live=[one[warm:] for one in sides], simulated=went[warm:])
        (keep / f"{load:g}.simulated.json").write_bytes(msgspec.json.encode(went))
    if not runs:
        raise ConfigError(
            f"{keep}: no load was run live on both sides (missing: {', '.join(missing)}), and one run alone does not "
            f"tell how far live is from live; measure it whole, without --again"
        )
    fidelity_report.add(report, runs)
    report.note("requests bring no deadlines; who would wait for more than the default of 30 s is refused")
    report.note("latencies are the server's own, from a request's arrival, of requests that were done")
    report.note("errors are against the mean of both live runs; the profile was measured on random tokens before them")


def options(parser: argparse.ArgumentParser) -> None:
    """What can be chosen beside `--quick`."""
    parser.add_argument("--mix", choices=sorted(mixes.MIXES), default="apps")
    parser.add_argument("--loads", help="shares of saturation, such as 0.4,0.8, in place of the usual ones")
    parser.add_argument("--requests", type=int, help="requests of a run, in place of the usual number")
    parser.add_argument("--keep", type=Path, default=RESULTS / "fidelity", help="folder for what was measured live")
    parser.add_argument("--again", type=Path, metavar="FOLDER", help="simulate what is kept there, live nothing")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="the engine's profile, in place of measuring it")
    parser.add_argument("--control", action="store_true", help="live engines only take the profile's time")
    parser.add_argument("--steps", action="store_true", help="note every step of the live engine, for comparing them")


def main() -> None:
    """Run it."""
    args = arguments(__doc__, more=options)
    plan = QUICK if args.quick else FULL
    plan = msgspec.structs.replace(
        plan,
        loads=tuple(float(load) for load in args.loads.split(",")) if args.loads else plan.loads,
        requests=args.requests or plan.requests,
    )
    report = Report("fidelity", {"requests": plan.requests, "warm": plan.warm, "max_tokens": MAX_TOKENS})
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    keep: Path = args.again or args.keep
    if args.again is None:
        if (load := os.getloadavg()[0]) > IDLE_LOAD:
            report.note(f"the machine was not idle when this began (load average {load:.1f}): repeat it")
        emptied(keep / SERVERS)
        live(plan, args.mix, keep, steps=args.steps, known=args.profile, control=args.control)
        if args.control:
            report.note("a control: the live engine only took the profile's time, so errors are of all but the engine")
    again(keep, report)
    report.finish(args.json)


if __name__ == "__main__":
    main()
