"""CIFAR-10 as arrays, read from the archive of its JPEG images."""

from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.data import folder

ARCHIVE = "images/cifar10/cifar10_jpg.tar.xz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Part = tuple[np.ndarray, np.ndarray]
"""Images `[n, 3, 32, 32]` (uint8) and labels `[n]` (int64)."""


def archive() -> Path | None:
    """Where the images are, or `None`."""
    found = folder() / ARCHIVE
    return found if found.exists() else None


def cifar(source: Path, cache: Path | None = None) -> tuple[Part, Part]:
    """The images to train on and those held out, in the archive's order.

    Decoding takes ten seconds; with `cache`, a file, the arrays are written there and read from there the next time.
    """
    if cache is not None and cache.exists():
        with np.load(cache) as kept:
            return (kept["train_x"], kept["train_y"]), (kept["test_x"], kept["test_y"])
    images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    with lzma.open(source) as raw, tarfile.open(fileobj=raw, mode="r|") as tar:
        for member in tar:
            opened = tar.extractfile(member)
            if opened is None:
                continue
            part, name, _ = member.name.split("/")
            images[part].append(np.asarray(Image.open(io.BytesIO(opened.read())).convert("RGB")).transpose(2, 0, 1))
            labels[part].append(CLASSES.index(name))
    train, test = ((np.stack(images[part]), np.asarray(labels[part], np.int64)) for part in ("train", "test"))
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, train_x=train[0], train_y=train[1], test_x=test[0], test_y=test[1])
    return train, test
