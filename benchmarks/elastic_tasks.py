"""The tasks that the benchmark of elastic encoders serves: three on each of two frozen encoders, by `foreserve adapt`'s
own code.

Texts, on MiniLM: tweet emotion, SST-2, AG News. Images, on the small vision transformer that ships: the ten kinds of
CIFAR-10 (its own head, which ships with it), whether what is seen is `alive`, and by how much an image was `turned`,
which the encoder was never trained on. Merging costs these tasks more or less, and prompts bring some of them more.

    python -m benchmarks.elastic_tasks [--out FOLDER] [NAME …]

writes those that are missing. What it made is in `benchmarks/tasks`, so the benchmark need not train.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from benchmarks.cifar import CLASSES, archive, cifar
from benchmarks.common import ROOT, console
from benchmarks.labelled_sets import labelled_set, written
from foreserve.elastic.adapting import Adapting, Plan
from foreserve.elastic.folder import read_folder, read_tasks
from foreserve.elastic.labelled import Labelled, read_labelled
from foreserve.elastic.loading import load
from foreserve.elastic.payload import Encode, TaskFacts
from foreserve.models.catalog import locate
from foreserve.settings import Environment
from foreserve.tensors import tensor_of

KEPT = ROOT / "benchmarks" / "tasks"
TEXT_MERGES, IMAGE_MERGES = (1, 2, 4, 8), (4, 8, 12, 16, 20, 24)
DEAD = ("airplane", "automobile", "ship", "truck")
ANGLES = ("0", "90", "180", "270")


class Made(msgspec.Struct, frozen=True):
    """A task: the encoder that it is on, what is tried, and how many rows it is trained and measured on at the most."""

    model: str
    plan: Plan
    train: int | None = None
    held_out: int | None = None


TASKS = {
    "emotion": Made("minilm", Plan(merges=TEXT_MERGES, prompts=())),
    "sst2": Made("minilm", Plan(merges=TEXT_MERGES, prompts=(8,), epochs=2, rate=0.03)),
    "ag_news": Made("minilm", Plan(merges=TEXT_MERGES, prompts=())),
    "alive": Made("vit-cifar10", Plan(merges=IMAGE_MERGES, prompts=()), 5000, 5000),
    "turned": Made("vit-cifar10", Plan(merges=IMAGE_MERGES, prompts=(8,), epochs=4), 10_000, 5000),
}


def images() -> Path:
    """CIFAR-10 as arrays, kept where the machine keeps what it made."""
    return Environment.read().cache / "benchmarks" / "cifar10.npz"


def of(model: str) -> list[str]:
    """The tasks on this encoder that are trained here."""
    return [name for name, made in TASKS.items() if made.model == model]


def task(name: str, base: Path, quick: bool = False) -> TaskFacts | None:
    """The task of `base/MODEL`, trained where it is not there; `None` where its data is not. A few rows if `quick`."""
    made = TASKS[name]
    folder = locate(made.model, "elastic").path
    facts = read_folder(folder)
    home = base / made.model
    if (home / name / "task.json").exists():
        return read_tasks(home, facts)[name]
    if (labelled_set(name) if made.model == "minilm" else archive()) is None:
        return None
    train, held, labels = labelled_texts(name) if made.model == "minilm" else _images(name)
    most = (300, 200) if quick else (made.train, made.held_out)
    train, held = (each.part(range(len(each.numbers))[:rows]) for each, rows in zip((train, held), most, strict=True))
    plan = msgspec.structs.replace(made.plan, epochs=1) if quick else made.plan
    with Progress(console=console, transient=True) as bars:
        bar = bars.add_task(name, total=1.0)

        def progress(done: float, what: str) -> None:
            bars.update(bar, completed=done, description=f"task {name}: {what}")

        model = load(folder, facts, "f32")[0]
        return Adapting(model, folder, facts, train, held, labels, plan, home / name, progress).run()


def labelled_texts(name: str, quick: bool = False) -> tuple[Labelled, Labelled, list[str]]:
    """What to train on, what is held out, and the labels. Raises SystemExit where the data is not here."""
    there = labelled_set(name)
    if there is None:
        raise SystemExit("no labelled texts here (FORESERVE_DATA)")
    folder = locate("minilm", "elastic").path
    facts = read_folder(folder)
    with tempfile.TemporaryDirectory() as scratch:
        most = 300 if quick else None
        files = [written(rows[:most], Path(scratch) / f"{at}.jsonl") for at, rows in enumerate(there)]
        train, labels = read_labelled(files[0], folder, facts, ())
        held, _ = read_labelled(files[1], folder, facts, labels)
    return train, held, labels


def _images(name: str) -> tuple[Labelled, Labelled, list[str]]:
    source = archive()
    assert source is not None
    parts, names = [], ["alive", "dead"] if name == "alive" else [*ANGLES]
    for seed, (pictures, kinds) in enumerate(cifar(source, images())):
        draw = np.random.default_rng(seed)
        chosen = draw.permutation(len(kinds))[:10_000]
        if name == "alive":
            numbers = [int(CLASSES[kinds[at]] in DEAD) for at in chosen]
            shown = [pictures[at] for at in chosen]
        else:
            numbers = draw.integers(0, len(ANGLES), len(chosen)).tolist()
            shown = [turned(pictures[at], number) for at, number in zip(chosen, numbers, strict=True)]
        rows = [Encode(pixels=tensor_of(np.ascontiguousarray(each.transpose(1, 2, 0)))) for each in shown]
        parts.append(Labelled(rows, numbers))
    return parts[0], parts[1], names


def turned(picture: NDArray[np.uint8], quarters: int) -> NDArray[np.uint8]:
    """`[3, height, width]`, by so many quarters to the left."""
    return np.rot90(picture, quarters, axes=(1, 2))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TASKS)}; all without")
    parser.add_argument("--out", type=Path, default=KEPT)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a few rows: to see that it runs")
    chosen = parser.parse_args(argv)
    torch.set_num_threads(chosen.threads)
    for name in chosen.names or TASKS:
        if name not in TASKS:
            raise SystemExit(f"{name!r} is no task; valid: {', '.join(TASKS)}")
        found = task(name, chosen.out, chosen.quick)
        words = "no data here (FORESERVE_DATA)" if found is None else f"{found.accuracy}; kept: {found.kept}"
        console.print(f"{name}: {words}", highlight=False)


if __name__ == "__main__":
    main()
