"""Put the small vision transformer that `benchmarks.train_vit` trained where the package has it, `vit-cifar10`.

    python -m benchmarks.ship_vit --folder runs/vit

Its own head becomes the task `cifar10` beside it, with the accuracy of every setting on the held-out images.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import msgspec
import torch
from rich.console import Console
from safetensors.torch import save_file

from benchmarks.cifar import CLASSES, archive
from benchmarks.common import ROOT
from benchmarks.elastic_models import Vision
from foreserve.elastic.fitting import undominated
from foreserve.elastic.heads import FILE
from foreserve.elastic.payload import TaskFacts
from foreserve.elastic.setting import PLAIN, Merge, Setting

SHIPPED = ROOT / "src" / "foreserve" / "elastic" / "vit_cifar10"
SETTINGS: tuple[Setting, ...] = (Merge(24), Merge(20), Merge(16), Merge(12), Merge(8), Merge(4), PLAIN)
FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
MOST_BYTES = 8_000_000


def ship(source: Path, images: Path, cache: Path, out: Path, count: int = 10_000) -> TaskFacts:
    """Copy the model in `source` and write the task beside it; `count` held-out images are asked."""
    if (source / "model.safetensors").stat().st_size > MOST_BYTES:
        raise SystemExit(f"{source}: the checkpoint has more than {MOST_BYTES} bytes")
    model = Vision(source, images, cache, count)
    accuracy = {str(setting): round(model.accuracy(setting), 5) for setting in SETTINGS}
    # By arithmetic: the dearer a setting the less it saves.
    cost = {str(setting): round(1e9 / model.speed_up(setting)) for setting in SETTINGS}
    facts = TaskFacts(
        name="cifar10",
        labels=[*CLASSES],
        model=out.name,
        width=model.model.config.hidden_size,
        pooling="cls",
        accuracy=accuracy,
        kept=undominated(accuracy, cost),
        held_out=len(model.labels),
        notes={"trained_on": "50000", "head": "the model's own"},
    )
    task = out / "tasks" / "cifar10"
    task.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(source / name, out / name)
    head = model.model.classifier
    tensors = {"head.0.weight": head.weight, "head.0.bias": head.bias}
    save_file({name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}, task / FILE)
    (task / "task.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts)) + b"\n")
    return facts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="what benchmarks.train_vit wrote")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--count", type=int, default=10_000, help="held-out images that are asked")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    source = archive()
    if source is None:
        raise SystemExit("no CIFAR-10 images here (FORESERVE_DATA)")
    torch.set_num_threads(chosen.threads)
    facts = ship(chosen.folder / "model", source, chosen.folder / "images.npz", chosen.out, chosen.count)
    Console().print(f"{chosen.out}: {facts.accuracy}; kept: {', '.join(facts.kept)}")


if __name__ == "__main__":
    main()
