"""Embeddings are those of sentence-transformers itself, where that is installed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foreserve.elastic.encoder import ElasticEncoder
from foreserve.elastic.folder import read_folder
from foreserve.elastic.heads import pooled
from foreserve.elastic.inputs import padded
from foreserve.elastic.loading import load
from foreserve.elastic.payload import Encode
from foreserve.elastic.words import Words
from tests.elastic import folders

TEXTS = [
    "",
    " a ",
    "What is the capital of France?",
    "ÀÉ – “quotes”, 東京 and 🙂",
    "line\nbreaks\tand   spaces",
    "a long text of many words " * 100,
]


def ours(folder: Path, texts: Sequence[str]) -> np.ndarray:
    facts = read_folder(folder)
    words = Words(folder, facts)
    model, _ = load(folder, facts, "f32")
    with torch.inference_mode():
        encoded = ElasticEncoder(model)(padded([Encode(ids=words.of_text(text, "input")) for text in texts], facts))
        return pooled(encoded, facts.pooling).numpy()


def theirs(folder: Path, texts: Sequence[str]) -> np.ndarray:
    sentence_transformers: Any = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    return np.asarray(model.encode([*texts]))


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_a_small_model(tmp_path: Path, pooling: str) -> None:
    folder = folders.sentences(tmp_path, pooling)
    assert cosines(ours(folder, TEXTS), theirs(folder, TEXTS)).min() >= 0.9999


@pytest.mark.model
def test_minilm() -> None:
    from foreserve.models.catalog import locate

    folder = locate("minilm", "test").path
    assert cosines(ours(folder, TEXTS), theirs(folder, TEXTS)).min() >= 0.9999
