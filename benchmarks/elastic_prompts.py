"""Prompts beside the head alone: the same frozen encoder, the same data, a paired test on held-out texts.

Each seed splits, draws and trains anew by `foreserve adapt`'s own code; the head is the best of several decays. For
each seed and for all of them together: how many texts one of the two answers rightly and the other does not, and how
likely so uneven a split is by chance (McNemar's exact test). Texts are the same for every seed, so the test of all
together counts each text once, by which of the two is right under more seeds.

    python -m benchmarks.elastic_prompts [--task sst2] [--seeds 3] [--epochs 2] [--rate 0.03] [--json FILE]

What is trained is in `--tasks` afterwards, and taken from there the next time. That of seed 0 is the one that
`benchmarks.elastic_tasks` makes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from benchmarks.common import Report, arguments, console
from benchmarks.elastic_tasks import TEXT_MERGES
from benchmarks.labelled_sets import SETS, labelled_set, written
from foreserve.elastic.adapting import Adapting, Plan
from foreserve.elastic.encoder import ElasticEncoder
from foreserve.elastic.fitting import batches
from foreserve.elastic.folder import EncoderFacts, read_folder, read_tasks
from foreserve.elastic.heads import Task, pooled
from foreserve.elastic.inputs import padded
from foreserve.elastic.labelled import Labelled, read_labelled
from foreserve.elastic.loading import load
from foreserve.elastic.setting import PLAIN, Prompts
from foreserve.models.catalog import locate
from foreserve.settings import Environment

Right = NDArray[np.bool_]


def answered(encoder: ElasticEncoder, task: Task, held: Labelled, facts: EncoderFacts, p: int) -> Right:
    """Which of the held-out texts the task answers rightly with `p` prompts; 0 is the head alone."""
    found = np.zeros(len(held.numbers), bool)
    weight, bias = task.head(p)
    with torch.inference_mode():
        for chosen in batches(held, 32, None):
            inputs = padded([held.payloads[at] for at in chosen], facts)
            own = task.prompts(p).expand(len(chosen), -1, -1, -1) if p else None
            vectors = pooled(encoder(inputs, Prompts(p) if p else PLAIN, own), facts.pooling)
            guessed = (vectors @ weight.T + bias).argmax(1).numpy()
            found[chosen] = guessed == np.array([held.numbers[at] for at in chosen])
    return found


def by_chance(ours: int, theirs: int) -> float:
    """McNemar's exact test, two-sided: `ours` texts are answered rightly by us alone, `theirs` by them alone."""
    every = ours + theirs
    ways = sum(math.comb(every, n) for n in range(min(ours, theirs) + 1))
    return min(1.0, float(2 * ways / 2**every))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""

    def more(parser: Any) -> None:
        parser.add_argument("--task", choices=sorted(SETS), default="sst2")
        parser.add_argument("--prompts", type=int, default=8)
        parser.add_argument("--epochs", type=int, default=2)
        parser.add_argument("--rate", type=float, default=0.03, help="of the prompts, by AdamW")
        parser.add_argument("--seeds", type=int, default=3)
        parser.add_argument("--rows", type=int, help="of the data to train on; all without")
        parser.add_argument("--tasks", type=Path, default=Environment.read().cache / "benchmarks" / "prompts")
        parser.add_argument("--threads", type=int, default=1)

    chosen = arguments(__doc__, argv, more)
    torch.set_num_threads(chosen.threads)
    there = labelled_set(chosen.task)
    if there is None:
        raise SystemExit("no labelled texts here (FORESERVE_DATA)")
    train, held = (rows[: 200 if chosen.quick else None] for rows in there)
    train = train[: chosen.rows]
    plan = {"prompts": (chosen.prompts,), "epochs": 1 if chosen.quick else chosen.epochs, "rate": chosen.rate}
    told = {**plan, "task": chosen.task, "rows": len(train), "held_out": len(held), "quick": chosen.quick}
    report = Report("elastic_prompts", told)
    sign = f"{chosen.task}-{chosen.prompts}x{plan['epochs']}-{chosen.rate:g}-{len(train)}"
    base: Path = chosen.tasks / sign
    folder = locate("minilm", "elastic_prompts").path
    facts = read_folder(folder)
    encoder = ElasticEncoder(model := load(folder, facts, "f32")[0])
    train_data, labels = read_labelled(written(train, base / "data" / "train.jsonl"), folder, facts, ())
    held_data, _ = read_labelled(written(held, base / "data" / "held.jsonl"), folder, facts, labels)
    better = np.zeros(len(held), int)
    heads, prompted, gains = [], [], []
    for seed in range(1 if chosen.quick else chosen.seeds):
        out = base / f"seed-{seed}"
        if not (out / "task.json").exists():
            began = time.perf_counter()
            with Progress(console=console, transient=True) as bars:
                bar = bars.add_task("adapting", total=1.0)

                def progress(done: float, what: str, bars: Progress = bars, bar: Any = bar) -> None:
                    bars.update(bar, completed=done, description=what)

                settings = Plan(merges=TEXT_MERGES, seed=seed, **plan)
                Adapting(model, folder, facts, train_data, held_data, labels, settings, out, progress).run()
            report.note(f"seed {seed}: trained in {time.perf_counter() - began:.0f} s")
        task = Task.load(out, read_tasks(base, facts)[out.name])
        alone, ours = (answered(encoder, task, held_data, facts, p) for p in (0, chosen.prompts))
        better += ours.astype(int) - alone
        won, lost = int((ours & ~alone).sum()), int((alone & ~ours).sum())
        report.note(
            f"seed {seed}: head alone {alone.mean():.4f}, prompts {ours.mean():.4f}; {won} texts only with prompts, "
            f"{lost} only without, by chance {by_chance(won, lost):.2g}"
        )
        heads.append(float(alone.mean()))
        prompted.append(float(ours.mean()))
        gains.append(prompted[-1] - heads[-1])
    report.add("head_alone", heads)
    report.add("prompts", prompted)
    report.add("prompts_over_head", gains, "above 0")
    report.add("prompts_over_head_by_chance", by_chance(int((better > 0).sum()), int((better < 0).sum())), "below 0.01")
    report.finish(chosen.json)


if __name__ == "__main__":
    main()
