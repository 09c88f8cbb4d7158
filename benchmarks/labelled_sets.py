"""Labelled texts to train tasks on and to measure them by, as they lie in the data folder."""

from __future__ import annotations

import csv
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.data import folder

Rows = list[tuple[str, str]]
"""Texts and their labels."""

AG_NEWS = ("world", "sports", "business", "science")
AG_NEWS_TRAINS = 5000
"""Only its test part is here: so many of it are trained on, the others are held out."""


def _sst2(base: Path) -> tuple[Rows, Rows]:
    names = ("negative", "positive")

    def part(name: str) -> Rows:
        lines = lzma.decompress((base / f"sst2/{name}.tsv.xz").read_bytes()).decode().splitlines()
        return [(text, names[int(label)]) for text, _, label in (line.rpartition("\t") for line in lines)]

    return part("train"), part("test")


def _emotion(base: Path) -> tuple[Rows, Rows]:
    home = base / "tweeteval/emotion"
    names = dict(line.split() for line in (home / "mapping.txt").read_text().splitlines() if line)

    def part(name: str) -> Rows:
        texts = (home / f"{name}_text.txt").read_text().rstrip("\n").split("\n")
        labels = (home / f"{name}_labels.txt").read_text().split()
        return [(text, names[label]) for text, label in zip(texts, labels, strict=True)]

    return part("train") + part("val"), part("test")


def _ag_news(base: Path) -> tuple[Rows, Rows]:
    text = lzma.decompress((base / "ag_news/test.csv.xz").read_bytes()).decode()
    rows = [(f"{title}. {body}", AG_NEWS[int(label) - 1]) for label, title, body in csv.reader(io.StringIO(text))]
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[at] for at in order[:AG_NEWS_TRAINS]], [rows[at] for at in order[AG_NEWS_TRAINS:]]


SETS: dict[str, Callable[[Path], tuple[Rows, Rows]]] = {"emotion": _emotion, "sst2": _sst2, "ag_news": _ag_news}


def labelled_set(name: str) -> tuple[Rows, Rows] | None:
    """What to train on and what is held out, or `None` where the data is not here."""
    base = folder() / "textcls"
    return SETS[name](base) if base.is_dir() else None


def written(rows: Rows, file: Path) -> Path:
    """As `foreserve adapt` reads them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return file
