"""Passages, found by their words (BM25) and by their meaning (MiniLM), for the examples that answer from texts.

The passages are the lines of PASSAGES, a file; those beside this file where that is not set.
"""

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

import foreserve as fs

PASSAGES = Path(os.environ.get("PASSAGES", Path(__file__).parent / "passages.txt"))
passages = [line for line in PASSAGES.read_text(encoding="utf-8").splitlines() if line.strip()]


def terms(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


class BM25:
    """Scores of all texts for one term at a time, so that a query can be scored while it is still being written."""

    def __init__(self, texts: list[str], k1: float = 1.5, b: float = 0.75) -> None:
        counts = [Counter(terms(text)) for text in texts]
        lengths = np.array([sum(count.values()) for count in counts], dtype=float)
        slope = k1 * (1 - b + b * lengths / lengths.mean())
        holders: dict[str, list[int]] = {}
        for number, count in enumerate(counts):
            for term in count:
                holders.setdefault(term, []).append(number)
        self.size = len(texts)
        self.postings: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for term, numbers in holders.items():
            at = np.array(numbers)
            found = np.array([counts[number][term] for number in numbers], dtype=float)
            rarity = np.log(1 + (self.size - len(at) + 0.5) / (len(at) + 0.5))
            self.postings[term] = (at, rarity * found * (k1 + 1) / (found + slope[at]))

    def add(self, term: str, scores: np.ndarray) -> None:
        if term in self.postings:
            at, score = self.postings[term]
            scores[at] += score


index = BM25(passages)


@fs.stage
async def lexical(query_words: fs.Stream[str]) -> list[int]:
    """The 50 best passages by words. Begins with the first word and adds up, in whatever order they come."""
    scores = np.zeros(index.size)
    async for word in query_words:
        for term in terms(word):
            index.add(term, scores)
    best = np.argsort(-scores, kind="stable")[:50]
    return [int(number) for number in best if scores[number] > 0]


@fs.function(batch=16, start_limit_s=300, liveness_s=300)
class Meaning:
    """How near each passage is to a query by meaning, -1 to 1. Queries that come together are encoded together."""

    def __init__(self) -> None:
        from foreserve.foresight.length_encoder import MiniLM
        from foreserve.models.catalog import locate

        self.minilm = MiniLM(locate("minilm", "examples/retrieval.py").path)
        self.passages = self.minilm.inputs(passages).astype(np.float32)

    def __call__(self, query: list[str]) -> list[list[float]]:
        return (self.minilm.inputs(query) @ self.passages.T).tolist()


@fs.stage
async def rerank(found: list[int], nearness: list[float]) -> list[int]:
    """The five best by meaning, of those that have words in common with the query; of all where none have."""
    return sorted(found or range(len(nearness)), key=lambda number: -nearness[number])[:5]


def search(query):
    """One query: its words go one by one to the lexical index, all of it to the encoder, and both meet again."""
    return rerank(lexical(query.split(fs.words)), Meaning(query))
