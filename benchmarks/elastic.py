"""Elastic encoders: what token settings cost and bring, and what planning them is worth under load.

Real models: accuracy by setting for each task (held-out data), throughput by setting, recall of merged embeddings. The
profile and the accuracies that were measured are then played on the virtual clock, through the real dispatcher: three
loads (steady, bursty, the arrivals of a real trace) at 0.5 to 2 times what plain serving can do, ours beside every
fixed setting, beside switching between two models, and beside plain dynamic batching. Fixed settings are served twice:
by ordinary dynamic batching, and by our own batching and shedding with the setting held fixed, which tells what the
choice of settings alone brings.

    python -m benchmarks.elastic [--quick] [--tasks FOLDER] [--vit FOLDER]

`--tasks` holds tasks of MiniLM by `foreserve adapt`; those that are missing are trained, which takes long. `--vit` is
the folder that `benchmarks.train_vit` wrote.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cifar import archive
from benchmarks.common import ROOT, Report, arguments, console, median
from benchmarks.elastic_models import Vision, fastest, paces, recalls
from benchmarks.elastic_oracle import Clairvoyant
from benchmarks.elastic_play import Side, drawn, simulated
from benchmarks.elastic_switching import Switching
from benchmarks.labelled_sets import labelled_set, written
from foreserve.clock import now, precise
from foreserve.elastic.adapting import Adapting, Plan
from foreserve.elastic.encoder import ElasticEncoder
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
SIZE = 32
LOADS = (0.5, 1.0, 1.5, 2.0)
KINDS = ("steady", "bursty", "trace")
BUDGET = 2000
SHAPES = (Merge(8), Merge(4), Merge(2), PLAIN)
"""Of the vision transformer's 64 patches and six layers."""


def planner(report: Report, quick: bool) -> None:
    """Time and quality of plans of 16 open batches; equality with trying everything on small queues."""
    draw = np.random.default_rng(0)

    def batch(due: float, most: int) -> Batch:
        count = int(draw.integers(1, most + 1))
        seconds = np.array([0.012, 0.015, 0.02, 0.026, 0.03]) * (0.3 + count / 32)
        worth = np.array([0.7, 0.74, 0.77, 0.79, 0.8])[:, None] * draw.uniform(0.3, 3, count)
        return Batch([*(due + draw.uniform(0, 0.02, count))], [*seconds], worth, [0.0] * count)

    async def timed() -> list[float]:
        found = []
        for _ in range(200 if quick else 2000):
            queue = [batch(float(at), 32) for at in np.cumsum(draw.uniform(0, 0.03, 16))]
            began = precise()
            plan(queue, 0.0, BUDGET)
            found.append(1000 * (precise() - began))
        return found

    report.add("planner_p99_ms", float(np.percentile(asyncio.run(timed()), 99)), "below 1")
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
        chosen = Plan(merges=(1, 2, 4), prompts=() if quick else (4,), epochs=5)
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


def utilities(report: Report, profile: Profile, accuracy: dict[str, float], quick: bool) -> None:
    """Ours beside the others, summed over all loads."""
    seconds = {each: interpolated(profile, profile.seconds[each], SIZE, 1) for each in accuracy}
    unit = interpolated(profile, profile.seconds["plain"], 8, 1)
    capacity = SIZE / seconds["plain"]
    count = 400 if quick else 4000
    fast = min(accuracy, key=lambda each: seconds[each])
    load_s = 20 * unit
    ours = Side(name="ours", plans=accuracy)
    fixed = [Side(name=each, plans={each: accuracy[each]}) for each in accuracy]
    ordinary = [
        Side(name=f"{each}, ordinary", plans={each: accuracy[each]}, options={"span": 1e9, "utility_classes": ()})
        for each in accuracy
    ]
    plain = Side(name="plain dynamic batching", plans={"plain": accuracy["plain"]}, policy="deferred")
    models = {"plain": accuracy["plain"], fast: accuracy[fast]}
    switching = Side(
        name="switching",
        plans=models,
        engine={"load_s": load_s, "models": [*models]},
        made=lambda profile, _, plans: Switching(profile, plans, capacity, size=SIZE),
    )
    oracle = Side(
        name="oracle",
        plans=accuracy,
        made=lambda profile, queries, plans: Clairvoyant(profile, queries, plans, now(), size=SIZE, budget=20_000),
    )
    totals: dict[str, float] = {}
    for kind, share in itertools.product(KINDS, LOADS):
        queries = drawn(kind, share * capacity, count, unit, seed=1)
        line = {}
        for side in (ours, *fixed, *ordinary, plain, switching, oracle):
            tally = simulated(side, profile, queries, SIZE, seed=0)
            totals[side.name] = totals.get(side.name, 0.0) + tally.utility
            line[side.name] = tally
        told = ", ".join(f"{name} {part:.2f}" for name, part in line["ours"].shares().items())
        report.note(
            f"{kind} at {share:g}: ours {line['ours'].utility:.0f} ({told}); plain {line[plain.name].utility:.0f}"
        )
    mine = totals["ours"]
    best = max(fixed, key=lambda side: totals[side.name])
    report.note(f"the best fixed setting over all loads, under our batching, is {best.name}")
    report.add("utility_vs_best_fixed", mine / totals[best.name], "1.25")
    report.add("utility_vs_best_fixed_ordinary", mine / max(totals[side.name] for side in ordinary))
    report.add("utility_vs_switching", mine / totals["switching"])
    report.add("utility_vs_plain_batching", mine / totals[plain.name])
    report.add("utility_vs_oracle", mine / totals["oracle"], "near 1")


def vision(report: Report, folder: Path, quick: bool) -> None:
    """Accuracy and throughput of the small vision transformer, by setting."""
    source = archive()
    if source is None or not (folder / "model" / "config.json").exists():
        report.note("no trained vision transformer here: see benchmarks.train_vit")
        return
    model = Vision(folder / "model", source, folder / "images.npz", 500 if quick else 10_000)
    inputs = {"pixel_values": model.pixels[:SIZE]}
    paced = asyncio.run(paces(model.encoder, inputs, SHAPES, 3 if quick else 15))
    plain, quickest = median(paced["plain"]), fastest(paced)
    accuracies = {str(setting): model.accuracy(setting) for setting in SHAPES}
    for setting in SHAPES:
        words = f"{median(paced[str(setting)]) / plain:.2f} times as fast, {model.speed_up(setting):.2f} by arithmetic"
        report.note(f"vision transformer, {setting}: accuracy {accuracies[str(setting)]:.4f}, {words}")
    report.add("vit_accuracy_plain", accuracies["plain"], "0.75")
    report.add("vit_speedup_fastest", [each / plain for each in paced[quickest]])
    report.add("vit_accuracy_fastest", accuracies[quickest])


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""

    def more(parser: Any) -> None:
        parser.add_argument("--tasks", type=Path, default=ROOT / "runs" / "tasks")
        parser.add_argument("--vit", type=Path, default=ROOT / "runs" / "vit")
        parser.add_argument("--threads", type=int, default=1)

    chosen = arguments(__doc__, argv, more)
    torch.set_num_threads(chosen.threads)
    report = Report("elastic", {"size": SIZE, "threads": chosen.threads, "budget": BUDGET, "quick": chosen.quick})
    planner(report, chosen.quick)
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) if chosen.quick and not (chosen.tasks / "emotion").is_dir() else chosen.tasks
        for name in TASKS[:1] if chosen.quick else TASKS:
            found = task(name, base, chosen.quick)
            if found is None:
                report.note(f"no data for the task {name} here (FORESERVE_DATA)")
                continue
            told = ", ".join(f"{each} {value:.4f}" for each, value in found.accuracy.items())
            report.note(f"{name}, {found.held_out} held out: {told}; kept: {', '.join(found.kept)}")
            if name == TASKS[0]:
                profile = asyncio.run(profile_of(found.kept, 24, 5 if chosen.quick else 30))
                utilities(report, profile, {each: found.accuracy[each] for each in found.kept}, chosen.quick)
    vision(report, chosen.vit, chosen.quick)
    # In the quick form what answers a handful of queries is looked for among a few hundred abstracts.
    queries, others = (10, 200) if chosen.quick else (93, 12_000)
    found_recalls = recalls(locate("minilm", "elastic").path, (1, 2), queries, others)
    if found_recalls is None:
        report.note("no retrieval data here (FORESERVE_DATA)")
    else:
        report.note(f"recall at 10: {', '.join(f'{each} {value:.4f}' for each, value in found_recalls.items())}")
        report.add("text_recall_merged_vs_plain", found_recalls["merge:1"] / found_recalls["plain"])
    report.finish(chosen.json)


if __name__ == "__main__":
    main()
