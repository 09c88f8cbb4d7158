"""Elastic encoders: what token settings cost and bring, and what planning them is worth under load.

Real models: accuracy by setting for each task (held-out data), throughput by setting, recall of merged embeddings. The
profile and the accuracies that were measured are then played on the virtual clock, through the real dispatcher and
policy (`elastic_worth`): three loads at 0.5 to 2 times what plain serving can do, of three tasks on one encoder, ours
beside every fixed setting, beside switching between two models, beside plain dynamic batching, and beside what nobody
can exceed. A few loads are run live on MiniLM in its worker process (`elastic_live`).

    python -m benchmarks.elastic [--quick] [--json FILE] [--tasks FOLDER] [--vit FOLDER] [--only PART …]

`--tasks` holds tasks as `benchmarks.elastic_tasks` makes them; those that are missing are trained, which takes long.
`--vit` is a folder that `benchmarks.train_vit` wrote; without, it is the model that ships.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress, TimeElapsedColumn

from benchmarks.cifar import archive
from benchmarks.common import Report, arguments, console, median, picture
from benchmarks.elastic_live import live
from benchmarks.elastic_models import Vision, fastest, loading, paces, recalls
from benchmarks.elastic_play import Plans
from benchmarks.elastic_tasks import KEPT, images, of, task
from benchmarks.elastic_worth import SIZE, Case, worth
from foreserve.clock import precise
from foreserve.core import Work
from foreserve.elastic.batching import Elastic
from foreserve.elastic.calibrating import calibrated
from foreserve.elastic.encoder import ElasticEncoder
from foreserve.elastic.fitting import undominated
from foreserve.elastic.folder import read_folder
from foreserve.elastic.loading import load
from foreserve.elastic.measuring import measured
from foreserve.elastic.planner import Batch, plan
from foreserve.elastic.profile import Grid, Profile, interpolated
from foreserve.elastic.setting import PLAIN, Merge, Prompts, Setting, parse_setting
from foreserve.models.catalog import locate
from foreserve.ports import Room

PARTS = ("planner", "vision", "texts", "retrieval")
SHAPES: tuple[Setting, ...] = (Merge(24), Merge(20), Merge(16), Merge(12), Merge(8), Merge(4), PLAIN)
"""Of the vision transformer's 64 patches and six layers."""


def planner(report: Report, quick: bool, told: Callable[[float], None]) -> None:
    """Time and quality of plans of 16 open batches; equality with trying everything on small queues."""
    draw = np.random.default_rng(0)

    def batch(due: float, most: int) -> Batch:
        count = int(draw.integers(1, most + 1))
        seconds = np.array([0.012, 0.015, 0.02, 0.026, 0.03]) * (0.3 + count / 32)
        worth = np.array([0.7, 0.74, 0.77, 0.79, 0.8])[:, None] * draw.uniform(0.3, 3, count)
        return Batch([*(due + draw.uniform(0, 0.02, count))], [*seconds], worth, [0.0] * count)

    async def timed() -> tuple[list[float], list[float]]:
        own, passed = [], []
        for _ in range(200 if quick else 2000):
            queue = [batch(float(at), 32) for at in np.cumsum(draw.uniform(0, 0.03, 16))]
            at, began = time.thread_time(), precise()
            plan(queue, 0.0, budget)
            own.append(1000 * (time.thread_time() - at))
            passed.append(1000 * (precise() - began))
        return own, passed

    async def found() -> int:
        return calibrated(precise)

    # As a service does it when it starts.
    budget = asyncio.run(found())
    report.note(f"the planner looks at {budget} states at the most, as it found on this machine")
    # Of this thread: how long others keep it waiting is not the planner's.
    own, passed = asyncio.run(timed())
    report.add("plan_p99_ms", float(np.percentile(own, 99)), "below 1")
    report.add("plan_p99_wall_ms", float(np.percentile(passed, 99)), "below 1 where nothing else runs")
    told(0.3)
    own, passed = asyncio.run(picks(budget, 100 if quick else 1000))
    report.note("planner_p99_ms is of the whole choice among 16 open batches, in processor time of its thread")
    report.add("planner_p99_ms", float(np.percentile(own, 99)), "below 1")
    report.add("planner_median_ms", float(np.median(own)))
    report.add("planner_p99_wall_ms", float(np.percentile(passed, 99)), "below 1 where nothing else runs")
    told(0.6)
    wrong = 0
    for _ in range(100 if quick else 1000):
        queue = [batch(float(at), 3) for at in np.cumsum(draw.uniform(0, 0.02, int(draw.integers(1, 5))))]
        ways = itertools.product(*([None, *range(len(each.seconds))] for each in queue))
        wrong += abs(plan(queue, 0.0).worth - max(_worth(queue, way) for way in ways)) > 1e-9
    report.add("planner_differs_from_brute_force", float(wrong), "0")


async def picks(budget: int, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of whole choices among 16 open batches, as a service makes them: of the thread's own, and passed."""
    draw = np.random.default_rng(1)
    seconds = {"merge:20": 0.4, "merge:12": 0.6, "merge:8": 0.75, "merge:4": 0.9, "plain": 1.0}
    plans = dict(zip(seconds, (0.73, 0.77, 0.78, 0.788, 0.79), strict=True))
    one_pass = [0.002 + 0.0007 * n for n in (1, 8, SIZE)]
    grids: dict[str, Grid] = {each: tuple((share * s,) for s in one_pass) for each, share in seconds.items()}
    profile = Profile(sizes=(1, 8, SIZE), lengths=(1,), seconds=grids)
    room = Room(replica="r", free={"slots": float(SIZE)}, capacity={"slots": float(SIZE)}, running=0)
    own, passed = [], []
    policy = Elastic(profile, size=SIZE, budget=budget, wait_s=0.01)
    for at in range(count + 10):
        # Every other time with few to a batch, so that there is time for all of them.
        most, now, names = (SIZE, 6)[at % 2], 0.0, []
        for batch in range(16):
            now = 10.0 * at + 0.012 * batch
            utility, has_s = ((2.0, 0.3), (1.0, 0.5), (0.5, 1.0))[int(draw.integers(3))]
            for n in range(int(draw.integers(1, most + 1))):
                words: Any = {"cost": {"slots": 1.0, "tokens": 1.0}, "deadline": now + has_s * draw.uniform(0.9, 1.1)}
                names.append(f"{at}-{batch}-{n}")
                policy.add(Work(id=names[-1], payload=None, arrival=now, utility=utility, plans=plans, **words), now)
        # As after every batch in a service: all times are stretched anew.
        policy.timing.learn("plain", 8, 1, 0.0076 * draw.uniform(0.98, 1.02))
        began, start = time.thread_time(), precise()
        policy.pick([room], now)
        if at >= 10:
            own.append(1000 * (time.thread_time() - began))
            passed.append(1000 * (precise() - start))
        for name in names:
            policy.remove(name)
    return own, passed


def _worth(queue: Sequence[Batch], way: Sequence[int | None]) -> float:
    at, total = 0.0, 0.0
    for batch, setting in zip(queue, way, strict=True):
        if setting is not None:
            at += float(batch.seconds[setting])
            total += float(batch.gain(np.full(len(batch.seconds), at))[setting])
    return total


async def profile_of(settings: Sequence[str], length: int, within_s: float) -> Profile:
    """MiniLM's times for texts of `length` tokens, on this machine."""
    folder = locate("minilm", "elastic").path
    facts = read_folder(folder)
    encoder = ElasticEncoder(load(folder, facts, "f32")[0])

    async def forward(setting: str, size: int, tokens: int) -> None:
        ids = torch.randint(0, 30_000, (size, tokens))
        which = parse_setting(setting)
        p = which.p if isinstance(which, Prompts) else 0
        prompts = torch.zeros(size, encoder.depth, p, encoder.width) if p else None
        with torch.inference_mode():
            encoder({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, which, prompts)

    return await measured(forward, settings, (1, 8, SIZE), (length,), within_s)


class Bar:
    """What is being done, and how much of it, on one line."""

    def __init__(self, bars: Progress, parts: Sequence[str]) -> None:
        self._bars = bars
        self._parts = parts
        self._task = bars.add_task("", total=float(len(parts)))

    def __call__(self, part: str, done: float) -> None:
        self._bars.update(self._task, completed=self._parts.index(part) + done, description=part)


def vision(report: Report, folder: Path, images: Path, base: Path, quick: bool, told: Callable[[float], None]) -> None:
    """Accuracy and throughput of the small vision transformer by setting, and what choosing among them is worth."""
    source = archive()
    if source is None:
        report.note("no images here (FORESERVE_DATA)")
        return
    model = Vision(folder, source, images, 500 if quick else 10_000)
    inputs = {"pixel_values": model.pixels[:SIZE]}
    paced = asyncio.run(paces(model.encoder, inputs, SHAPES, 3 if quick else 15))
    plain, quickest = median(paced["plain"]), fastest(paced)
    accuracies = {}
    for at, setting in enumerate(SHAPES):
        accuracies[str(setting)] = model.accuracy(setting)
        told(0.5 * (at + 1) / len(SHAPES))
    for setting in SHAPES:
        pace = median(paced[str(setting)])
        words = f"{pace:.0f} a second, {pace / plain:.2f} times plain, {model.speed_up(setting):.2f} by arithmetic"
        report.note(f"vision transformer, {setting}: accuracy {accuracies[str(setting)]:.4f}, {words}")
    report.add("vit_accuracy_plain", accuracies["plain"], "0.75")
    report.add("vit_speedup_fastest", [each / plain for each in paced[quickest]])
    report.add("vit_accuracy_fastest", accuracies[quickest])
    told_of = {"kinds": accuracies}
    for name in of("vit-cifar10"):
        if (found := task(name, base, quick)) is not None:
            told_of[name] = found.accuracy
            report.note(f"{name}: {_by_setting(found.accuracy)}, of {found.held_out} held out")
    with picture("elastic_vision", "three tasks, small vision transformer", len(told_of)) as axes:
        for each, (name, values) in zip(axes, told_of.items(), strict=True):
            drawn_at = {setting: 1000 / median(paced[setting]) for setting in values if setting in paced}
            _dots(each, name, {setting: (ms, values[setting]) for setting, ms in drawn_at.items()})
    # By what was measured: settings that another of the same task beats are left out.
    profile = asyncio.run(
        model.profile([*dict.fromkeys(s for each in told_of.values() for s in each)], SIZE, 3 if quick else 20)
    )
    load_s = loading(folder)
    report.note(f"loading the vision transformer takes {load_s:.2f} s: what switching pays")
    case = Case(profile=profile, plans=_frontiers(profile, told_of, quickest), small=quickest, load_s=load_s)
    worth(report, "", case, quick, lambda done: told(0.5 + 0.5 * done))


def _by_setting(accuracy: Mapping[str, float]) -> str:
    return ", ".join(f"{setting} {value:.4f}" for setting, value in accuracy.items())


def _dots(axes: Any, name: str, points: Mapping[str, tuple[float, float]]) -> None:
    for setting, point in points.items():
        axes.plot(*point, "o")
        axes.annotate(setting, point)
    axes.set_title(name)
    axes.set_xlabel(f"ms for each input, batch of {SIZE}")
    axes.set_ylabel("accuracy")


def _frontiers(profile: Profile, told_of: Mapping[str, Mapping[str, float]], small: str) -> Plans:
    """Of each task the settings that none is both no dearer than and as accurate as; plain and `small` always."""
    cost = {each: round(1e9 * interpolated(profile, grid, SIZE, 1)) for each, grid in profile.seconds.items()}
    found: Plans = {}
    for name, accuracy in told_of.items():
        kept = {*undominated(accuracy, {each: cost[each] for each in accuracy}), "plain", small}
        found[name] = {each: accuracy[each] for each in cost if each in kept}
    return found


def texts(report: Report, base: Path, quick: bool, told: Callable[[float], None]) -> None:
    """Tasks on MiniLM: accuracy and throughput by setting, what choosing among them is worth, and a live service."""
    names = of("minilm")[:1] if quick else of("minilm")
    found = {name: facts for name in names if (facts := task(name, base, quick)) is not None}
    if not found:
        report.note("no labelled texts here (FORESERVE_DATA)")
        return
    settings = [*dict.fromkeys(each for facts in found.values() for each in facts.accuracy)]
    profile = asyncio.run(profile_of(settings, 32, 3 if quick else 20))
    paced = {each: SIZE / interpolated(profile, profile.seconds[each], SIZE, 1) for each in settings}
    told(0.1)
    for name, facts in found.items():
        report.note(f"{name}: {_by_setting(facts.accuracy)}, of {facts.held_out} held out")
        prompted = [value for each, value in facts.accuracy.items() if each.startswith("prompts")]
        if prompted:
            report.add(f"{name}_prompts_over_head", max(prompted) - facts.accuracy["plain"], "above 0")
    report.note(f"MiniLM, texts of 32 tokens, a second: {', '.join(f'{s} {pace:.0f}' for s, pace in paced.items())}")
    with picture("elastic_texts", "tasks on MiniLM, texts of 32 tokens", len(found)) as axes:
        for each, (name, facts) in zip(axes, found.items(), strict=True):
            _dots(each, name, {s: (1000 / paced[s], value) for s, value in facts.accuracy.items()})
    quickest = max((each for each in paced if each in next(iter(found.values())).accuracy), key=paced.__getitem__)
    plans = _frontiers(profile, {name: facts.accuracy for name, facts in found.items()}, quickest)
    load_s = loading(locate("minilm", "elastic").path)
    case = Case(profile=profile, plans=plans, small=quickest, load_s=load_s)
    worth(report, "text", case, quick, lambda done: told(0.1 + 0.4 * done))
    name = next((each for each in found if found[each].prompts), next(iter(found)))
    live(report, name, base / "minilm", quick, lambda done: told(0.5 + 0.5 * done))


def retrieval(report: Report, quick: bool, told: Callable[[float], None]) -> None:
    """Recall of merged embeddings. In the quick form what answers a handful of queries is among a few hundred."""
    queries, others = (10, 200) if quick else (93, 3_000)
    found = recalls(locate("minilm", "elastic").path, (1, 2), queries, others, told)
    if found is None:
        report.note("no retrieval data here (FORESERVE_DATA)")
        return
    told_of = ", ".join(f"{each} {value:.4f}" for each, value in found.items())
    report.note(f"recall at 10, {queries} queries, what answers them and {others} more abstracts: {told_of}")
    report.add("text_recall_merged_vs_plain", found["merge:1"] / found["plain"])


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""

    def more(parser: Any) -> None:
        parser.add_argument("--tasks", type=Path, default=KEPT, help="default: those that ship with the benchmarks")
        parser.add_argument("--vit", type=Path, help="default: the model that ships")
        parser.add_argument("--threads", type=int, default=1)
        parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)

    chosen = arguments(__doc__, argv, more)
    torch.set_num_threads(chosen.threads)
    quick = chosen.quick
    report = Report("elastic", {"size": SIZE, "threads": chosen.threads, "quick": quick})
    folder = chosen.vit / "model" if chosen.vit else locate("vit-cifar10", "elastic").path
    pictures = chosen.vit / "images.npz" if chosen.vit else images()
    began = time.monotonic()
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as bars:
        bar = Bar(bars, chosen.only)
        parts: dict[str, Callable[[Callable[[float], None]], None]] = {
            "planner": lambda told: planner(report, quick, told),
            "vision": lambda told: vision(report, folder, pictures, chosen.tasks, quick, told),
            "texts": lambda told: texts(report, chosen.tasks, quick, told),
            "retrieval": lambda told: retrieval(report, quick, told),
        }
        for name in chosen.only:
            bar(name, 0.0)
            try:
                parts[name](partial(bar, name))
            except Exception as error:  # the other parts' figures are still wanted
                traceback.print_exc()
                report.note(f"{name} failed: {type(error).__name__}: {error}")
            bar(name, 1.0)
            report.note(f"{name}: done {time.monotonic() - began:.0f} s after the start")
    report.finish(chosen.json)


if __name__ == "__main__":
    main()
