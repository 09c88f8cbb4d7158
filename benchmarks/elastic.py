"""Elastic encoders: what token settings cost and bring, and what planning them is worth under load.

Real models: accuracy by setting for each task (held-out data), throughput by setting, recall of merged embeddings. The
profile and the accuracies that were measured are then played on the virtual clock, through the real dispatcher
(`elastic_worth`): three loads at 0.5 to 2 times what plain serving can do, ours beside every fixed setting, beside
switching between two models, beside plain dynamic batching, and beside what nobody can exceed. A few loads are run live
on MiniLM in its worker process (`elastic_live`).

    python -m benchmarks.elastic [--quick] [--json FILE] [--tasks FOLDER] [--vit FOLDER]

`--tasks` holds tasks of MiniLM by `foreserve adapt`; those that are missing are trained, which takes long. `--vit` is
a folder that `benchmarks.train_vit` wrote; without, it is the model that ships.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cifar import archive
from benchmarks.common import ROOT, Report, arguments, console, median, picture
from benchmarks.elastic_live import live
from benchmarks.elastic_models import Vision, fastest, loading, paces, recalls
from benchmarks.elastic_worth import SIZE, worth
from benchmarks.labelled_sets import labelled_set, written
from foreserve.clock import precise
from foreserve.elastic.adapting import Adapting, Plan
from foreserve.elastic.calibrating import calibrated
from foreserve.elastic.encoder import ElasticEncoder
from foreserve.elastic.fitting import undominated
from foreserve.elastic.folder import read_folder
from foreserve.elastic.labelled import read_labelled
from foreserve.elastic.loading import load
from foreserve.elastic.measuring import measured
from foreserve.elastic.payload import TaskFacts
from foreserve.elastic.planner import Batch, plan
from foreserve.elastic.profile import Profile, interpolated
from foreserve.elastic.setting import PLAIN, Merge, Prompts, parse_setting
from foreserve.models.catalog import locate

TASKS = ("emotion", "sst2", "ag_news")
SHAPES = (Merge(24), Merge(20), Merge(16), Merge(12), Merge(8), Merge(4), PLAIN)
"""Of the vision transformer's 64 patches and six layers."""


def planner(report: Report, quick: bool) -> None:
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
    report.add("planner_p99_ms", float(np.percentile(own, 99)), "below 1")
    report.add("planner_median_ms", float(np.median(own)))
    report.add("planner_p99_wall_ms", float(np.percentile(passed, 99)), "below 1 where nothing else runs")
    wrong = 0
    for _ in range(100 if quick else 1000):
        queue = [batch(float(at), 3) for at in np.cumsum(draw.uniform(0, 0.02, int(draw.integers(1, 5))))]
        ways = itertools.product(*([None, *range(len(each.seconds))] for each in queue))
        wrong += abs(plan(queue, 0.0).worth - max(_worth(queue, way) for way in ways)) > 1e-9
    report.add("planner_differs_from_brute_force", float(wrong), "0")


def _worth(queue: Sequence[Batch], way: Sequence[int | None]) -> float:
    at, total = 0.0, 0.0
    for batch, setting in zip(queue, way, strict=True):
        if setting is not None:
            at += float(batch.seconds[setting])
            total += float(batch.gain(np.full(len(batch.seconds), at))[setting])
    return total


def task(name: str, base: Path, quick: bool) -> TaskFacts | None:
    """The task in `base`, trained where it is not there; `None` where its data is not."""
    folder = locate("minilm", "elastic").path
    facts = read_folder(folder)
    file = base / name / "task.json"
    if not file.exists():
        there = labelled_set(name)
        if there is None:
            return None
        train, held = (rows[: 400 if quick else None] for rows in there)
        train_data, labels = read_labelled(written(train, base / "data" / f"{name}.jsonl"), folder, facts, ())
        held_data, _ = read_labelled(written(held, base / "data" / f"{name}-held.jsonl"), folder, facts, labels)
        model, _ = load(folder, facts, "f32")
        # Prompts take minutes; one task shows what they bring.
        chosen = Plan(merges=(1, 2, 4), prompts=(4,) if name == TASKS[0] and not quick else (), epochs=6)
        console.print(f"training the task {name}")
        return Adapting(
            model, folder, facts, train_data, held_data, labels, chosen, base / name, lambda done, what: None
        ).run()
    from foreserve.elastic.folder import read_tasks

    return read_tasks(base, facts)[name]


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


def vision(report: Report, folder: Path, images: Path, quick: bool) -> None:
    """Accuracy and throughput of the small vision transformer by setting, and what choosing among them is worth."""
    source = archive()
    if source is None:
        report.note("no images here (FORESERVE_DATA)")
        return
    model = Vision(folder, source, images, 500 if quick else 10_000)
    inputs = {"pixel_values": model.pixels[:SIZE]}
    paced = asyncio.run(paces(model.encoder, inputs, SHAPES, 3 if quick else 15))
    plain, quickest = median(paced["plain"]), fastest(paced)
    accuracies = {str(setting): model.accuracy(setting) for setting in SHAPES}
    for setting in SHAPES:
        pace = median(paced[str(setting)])
        words = f"{pace:.0f} a second, {pace / plain:.2f} times plain, {model.speed_up(setting):.2f} by arithmetic"
        report.note(f"vision transformer, {setting}: accuracy {accuracies[str(setting)]:.4f}, {words}")
    report.add("vit_accuracy_plain", accuracies["plain"], "0.75")
    report.add("vit_speedup_fastest", [each / plain for each in paced[quickest]])
    report.add("vit_accuracy_fastest", accuracies[quickest])
    with picture("elastic_vision", "CIFAR-10, small vision transformer") as (axes,):
        for each, value in accuracies.items():
            axes.plot(1000 / median(paced[each]), value, "o")
            axes.annotate(each, (1000 / median(paced[each]), value))
        axes.set_xlabel(f"ms for each image, batch of {SIZE}")
        axes.set_ylabel("accuracy")
    # Only those that something is gained by: the frontier.
    cost = {each: round(1e9 / median(paced[each])) for each in accuracies}
    kept = [*dict.fromkeys([*undominated(accuracies, cost), "plain"])]
    profile = asyncio.run(model.profile(kept, SIZE, 3 if quick else 20))
    load_s = loading(folder)
    report.note(f"loading the vision transformer takes {load_s:.2f} s: what switching pays")
    worth(report, "", profile, {each: accuracies[each] for each in kept}, load_s, quick)


def texts(report: Report, name: str, base: Path, quick: bool) -> None:
    """A task on MiniLM: accuracy and throughput by setting; for the first one also what choosing is worth."""
    found = task(name, base, quick)
    if found is None:
        report.note(f"no data for the task {name} here (FORESERVE_DATA)")
        return
    profile = asyncio.run(profile_of([*found.accuracy], 24, 3 if quick else 20))
    for each, value in found.accuracy.items():
        pace = SIZE / interpolated(profile, profile.seconds[each], SIZE, 1)
        beside = "" if each in found.kept else ", not kept"
        report.note(f"{name}, {each}: accuracy {value:.4f} of {found.held_out} held out, {pace:.0f} a second{beside}")
    prompted = [value for each, value in found.accuracy.items() if each.startswith("prompts")]
    if prompted:
        report.add(f"{name}_prompts_over_head", max(prompted) - found.accuracy["plain"], "above 0")
    if name == TASKS[0]:
        kept = [*dict.fromkeys([*found.kept, "plain"])]
        load_s = loading(locate("minilm", "elastic").path)
        worth(report, "text", profile, {each: found.accuracy[each] for each in kept}, load_s, quick)
        live(report, name, base, kept[0], quick)


def retrieval(report: Report, quick: bool) -> None:
    """Recall of merged embeddings. In the quick form what answers a handful of queries is among a few hundred."""
    queries, others = (10, 200) if quick else (93, 12_000)
    found = recalls(locate("minilm", "elastic").path, (1, 2), queries, others)
    if found is None:
        report.note("no retrieval data here (FORESERVE_DATA)")
        return
    report.note(f"recall at 10: {', '.join(f'{each} {value:.4f}' for each, value in found.items())}")
    report.add("text_recall_merged_vs_plain", found["merge:1"] / found["plain"])


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""

    def more(parser: Any) -> None:
        parser.add_argument("--tasks", type=Path, default=ROOT / "runs" / "tasks")
        parser.add_argument("--vit", type=Path, help="default: the model that ships")
        parser.add_argument("--threads", type=int, default=1)

    chosen = arguments(__doc__, argv, more)
    torch.set_num_threads(chosen.threads)
    quick = chosen.quick
    report = Report("elastic", {"size": SIZE, "threads": chosen.threads, "quick": quick})
    folder = chosen.vit / "model" if chosen.vit else locate("vit-cifar10", "elastic").path
    with tempfile.TemporaryDirectory() as scratch:
        images = chosen.vit / "images.npz" if chosen.vit else Path(scratch) / "images.npz"
        base = Path(scratch) if quick and not (chosen.tasks / TASKS[0]).is_dir() else chosen.tasks
        parts: list[tuple[str, Callable[[], None]]] = [
            ("planner", lambda: planner(report, quick)),
            ("vision", lambda: vision(report, folder, images, quick)),
            *((name, lambda name=name: texts(report, name, base, quick)) for name in (TASKS[:1] if quick else TASKS)),
            ("retrieval", lambda: retrieval(report, quick)),
        ]
        for name, part in parts:
            console.print(f"{name} …")
            try:
                part()
            except Exception as error:  # the other parts' figures are still wanted
                traceback.print_exc()
                report.note(f"{name} failed: {type(error).__name__}: {error}")
    report.finish(chosen.json)


if __name__ == "__main__":
    main()
