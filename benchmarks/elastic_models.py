"""What token settings do to real models: accuracy, throughput, and how well merged embeddings find documents."""

from __future__ import annotations

import asyncio
import lzma
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cifar import cifar
from benchmarks.common import median
from benchmarks.data import folder as data_folder
from foreserve.clock import precise
from foreserve.elastic.cost import Shape, macs
from foreserve.elastic.encoder import ElasticEncoder
from foreserve.elastic.fitting import batches
from foreserve.elastic.folder import read_folder
from foreserve.elastic.heads import pooled
from foreserve.elastic.inputs import padded
from foreserve.elastic.labelled import Labelled
from foreserve.elastic.loading import load
from foreserve.elastic.measuring import measured
from foreserve.elastic.payload import Encode
from foreserve.elastic.profile import Profile
from foreserve.elastic.setting import PLAIN, Merge, Prompts, Setting, parse_setting
from foreserve.elastic.words import Words


async def paces(
    encoder: ElasticEncoder, inputs: Mapping[str, Tensor], settings: Sequence[Setting], repeats: int
) -> dict[str, list[float]]:
    """Inputs a second under each setting, the settings in turn."""
    found: dict[str, list[float]] = {str(setting): [] for setting in settings}
    size = len(next(iter(inputs.values())))
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for setting in settings:
                began = precise()
                encoder(inputs, setting)
                if repeat:  # the first is to get ready
                    found[str(setting)].append(size / (precise() - began))
    return found


class Vision:
    """The small vision transformer with its own head, on held-out images."""

    def __init__(self, folder: Path, source: Path, cache: Path, count: int) -> None:
        from transformers import ViTForImageClassification

        from benchmarks.train_vit import prepared

        self.model: Any = ViTForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.encoder = ElasticEncoder(self.model)
        _, (images, labels) = cifar(source, cache)
        chosen = np.random.default_rng(0).permutation(len(labels))[:count]
        self.pixels, self.labels = prepared(torch.from_numpy(images[chosen])), torch.from_numpy(labels[chosen])

    def accuracy(self, setting: Setting) -> float:
        """The share of images that are told rightly."""
        right = 0
        with torch.inference_mode():
            for start in range(0, len(self.labels), 100):
                part = slice(start, start + 100)
                encoded = self.encoder({"pixel_values": self.pixels[part]}, setting)
                right += int((self.model.classifier(encoded.first).argmax(1) == self.labels[part]).sum())
        return right / len(self.labels)

    async def profile(self, settings: Sequence[str], size: int, within_s: float) -> Profile:
        """Its times on this machine."""

        async def forward(setting: str, count: int, length: int) -> None:
            which = parse_setting(setting)
            p = which.p if isinstance(which, Prompts) else 0
            prompts = torch.zeros(count, self.encoder.depth, p, self.encoder.width) if p else None
            with torch.inference_mode():
                self.encoder({"pixel_values": self.pixels[:count]}, which, prompts)

        return await measured(forward, settings, (1, 8, size), (1,), within_s)

    def speed_up(self, setting: Setting) -> float:
        """By arithmetic alone: how many times fewer multiply-accumulates."""
        config = self.model.config
        patches = (config.image_size // config.patch_size) ** 2
        embedding = patches * 3 * config.patch_size**2 * config.hidden_size
        shape = Shape(
            tokens=patches + 1,
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            hidden=config.intermediate_size,
            embedding=embedding,
        )
        return macs(shape) / macs(shape, setting)


def loading(folder: Path) -> float:
    """Seconds until the encoder in `folder` is in memory, its files being in the system's cache: the second time."""

    async def timed() -> float:
        facts = read_folder(folder)
        load(folder, facts, "f32")
        began = precise()
        load(folder, facts, "f32")
        return precise() - began

    return asyncio.run(timed())


def vaswani(base: Path) -> tuple[dict[str, str], dict[str, str], dict[str, set[str]]] | None:
    """Abstracts and queries by number, and which abstracts answer a query; `None` where they are not here."""
    home = base / "retrieval" / "vaswani"
    if not home.is_dir():
        return None
    documents = lzma.decompress((home / "doc-text.trec.xz").read_bytes()).decode("latin-1")
    found = dict(re.findall(r"<DOCNO>\s*(\d+)\s*</DOCNO>(.*?)</DOC>", documents, re.DOTALL | re.IGNORECASE))
    asked = (home / "query-text.trec").read_text("latin-1")
    queries = dict(re.findall(r"<num>\s*(\d+)\s*</num>\s*<title>(.*?)</title>", asked, re.DOTALL | re.IGNORECASE))
    judged: dict[str, set[str]] = {}
    for line in (home / "qrels").read_text().splitlines():
        query, _, document, relevant = line.split()
        if int(relevant):
            judged.setdefault(query, set()).add(document)
    return found, queries, judged


def recalls(
    folder: Path, merges: Sequence[int], queries: int, others: int, told: Callable[[float], None]
) -> dict[str, float] | None:
    """Recall at 10 on Vaswani, by setting of documents and queries alike; `None` where the data is not here.

    Of `queries` judged queries, among what answers them and `others` more abstracts.
    """
    there = vaswani(data_folder())
    if there is None:
        return None
    documents, asked, judged = there
    chosen = [each for each in asked if judged.get(each)][:queries]
    wanted = {each for query in chosen for each in judged[query]}
    rest = [each for each in documents if each not in wanted]
    kept = sorted(wanted) + [rest[at] for at in np.random.default_rng(0).permutation(len(rest))[:others]]
    facts = read_folder(folder)
    words, (model, _) = Words(folder, facts), load(folder, facts, "f32")
    encoder = ElasticEncoder(model)
    found: dict[str, float] = {}
    texts = [Encode(ids=words.of_text(documents[each], "text")) for each in kept]
    lines = [Encode(ids=words.of_text(asked[each], "text")) for each in chosen]
    settings: list[Setting] = [PLAIN, *map(Merge, merges)]
    for setting in settings:
        one, other = (_vectors(encoder, each, setting, facts.pooling, facts) for each in (lines, texts))
        scores = one @ other.T
        hits = []
        for row, query in enumerate(chosen):
            first = {kept[at] for at in scores[row].topk(10).indices.tolist()}
            hits.append(len(first & judged[query]) / min(10, len(judged[query])))
        found[str(setting)] = float(np.mean(hits))
        told(len(found) / len(settings))
    return found


def _vectors(encoder: ElasticEncoder, payloads: Sequence[Encode], setting: Setting, how: str, facts: Any) -> Tensor:
    found = torch.empty(len(payloads), encoder.width)
    with torch.inference_mode():
        for chosen in batches(Labelled([*payloads], [0] * len(payloads)), 32, None):
            found[chosen] = pooled(encoder(padded([payloads[at] for at in chosen], facts), setting), how)
    return torch.nn.functional.normalize(found, dim=1)


def fastest(paced: Mapping[str, Sequence[float]]) -> str:
    """The setting that answers most a second."""
    return max(paced, key=lambda each: median(paced[each]))
