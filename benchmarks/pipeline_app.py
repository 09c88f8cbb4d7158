"""The fact checker that all sides run: its prompts, its stages, and it as a pipeline."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np

import foreserve as fs
from benchmarks.common import ROOT



def _example() -> dict[str, Any]:
    """What examples/fact_checking.py defines: the application is the same, and its prompts stand there alone."""
    folder = str(ROOT / "examples")
    sys.path.insert(0, folder)
    try:
        return runpy.run_path(f"{folder}/fact_checking.py")
    finally:
        sys.path.remove(folder)


_of = _example()
ANSWER, SYSTEM, EXTRACT, ASK_FOR, APPRAISE = (
    str(_of[name]) for name in ("ANSWER", "SYSTEM", "EXTRACT", "ASK_FOR", "APPRAISE")
)
sentences_of: fs.Splitter = _of["sentences_of"]
claims_of: fs.Splitter = _of["claims_of"]
queries_of: fs.Splitter = _of["queries_of"]

LIMITS = {"answer": 64, "extract": 40, "ask_for": 32, "appraise": 4}
STOPS: dict[str, tuple[str, ...]] = {"extract": ("\n\n",), "ask_for": ("\n\n",), "appraise": ("\n",)}

passages = [
    line for line in (ROOT / "examples" / "passages.txt").read_text(encoding="utf-8").splitlines() if line.strip()
]


def terms(text: str) -> set[str]:
    """Its words, in small letters."""
    return set(re.findall(r"[a-z0-9]+", text.lower()))


_TERMS = [terms(passage) for passage in passages]


def lexical_scores(words: set[str], scores: np.ndarray) -> None:
    """Add what these words are worth to each passage's score."""
    for number, held in enumerate(_TERMS):
        scores[number] += len(words & held)


def best(scores: np.ndarray) -> list[int]:
    """The twenty passages of the highest scores above 0."""
    return [int(n) for n in np.argsort(-scores, kind="stable")[:20] if scores[n] > 0]


def reranked(found: list[int], nearness: list[float]) -> list[int]:
    """The five best by meaning, of those found by words; of all where none were."""
    return sorted(found or range(len(nearness)), key=lambda number: (-nearness[number], number))[:5]


def fused(every: list[list[int]]) -> str:
    """The three passages that rank best over all queries; empty where nothing was found."""
    scores: dict[int, float] = {}
    for numbers in every:
        for rank, number in enumerate(numbers, 1):
            scores[number] = scores.get(number, 0.0) + 1 / rank
    return "\n".join(passages[n] for n in sorted(scores, key=lambda number: (-scores[number], number))[:3])


def judged(claim: str, evidence: str, word: str) -> dict[str, Any]:
    """A verdict."""
    return {"claim": claim, "supported": word.strip().lower().startswith("yes"), "evidence": evidence}


@fs.stage
async def lexical(query_words: fs.Stream[str]) -> list[int]:
    """Adds up the scores of words as they come."""
    scores = np.zeros(len(passages))
    async for word in query_words:
        lexical_scores(terms(word), scores)
    return best(scores)


@fs.stage
async def rerank(found: list[int], nearness: list[float]) -> list[int]:
    """See `reranked`."""
    return reranked(found, nearness)


@fs.stage
async def fuse(found: fs.Stream[list[int]]) -> AsyncIterator[str]:
    """See `fused`."""
    if evidence := fused(await found.to_list()):
        yield evidence


@fs.stage
async def verdict(claim: str, evidence: list[str], words: list[str]) -> dict[str, Any]:
    """See `judged`."""
    return judged(claim, evidence[0] if evidence else "", words[0] if words else "no")


def fact_checker(models: Mapping[str, Any], meaning: Any, by_words: Any = lexical, **words: Any) -> Any:
    """The pipeline. `models` has the language model of each stage by name; one may serve several.

    `meaning` tells how near each passage is to a query, `by_words` which passages have words of it.
    """

    def asks(name: str, template: str, system: str = "") -> Any:
        return fs.ask(
            models[name], template, system=system, name=name, max_tokens=LIMITS[name], temperature=0.0,
            stop=STOPS.get(name, ()),
        )  # fmt: skip

    answer, extract = asks("answer", ANSWER, SYSTEM), asks("extract", EXTRACT)
    ask_for, appraise = asks("ask_for", ASK_FOR), asks("appraise", APPRAISE)

    def checked(question: str) -> Any:
        written = answer(question)

        def search(query: Any) -> Any:
            return rerank(by_words(query.split(fs.words)), meaning(query))

        def check(claim: Any) -> Any:
            evidence = fuse(ask_for(claim).split(queries_of).map(search))
            return verdict(claim, evidence, evidence.map(lambda texts: appraise(evidence=texts, claim=claim)))

        claims = written.split(sentences_of).map(lambda sentence: extract(sentence).split(claims_of)).flatten()
        return {"answer": written, "verdicts": claims.map(check)}

    return fs.pipeline(**words)(checked)


QUESTIONS = [line.split("?")[0] + "?" for line in (
    "What is the capital of France and what is it known for?",
    "Who discovered penicillin and when?",
    "What is the highest mountain and where is it?",
    "Who wrote Hamlet and where was he born?",
    "What is the largest planet and how many moons has it?",
    "When did the Second World War end and how?",
    "What did Newton publish and when?",
    "Which rivers are the longest and where do they flow?",
    "Who painted the Mona Lisa and where does it hang?",
    "What is photosynthesis and what does it make?",
    "Who invented the World Wide Web and where?",
    "What is the capital of Japan and its highest mountain?",
)]  # fmt: skip


def question(number: int) -> str:
    """The questions in turn, each of its own words so that no two are alike."""
    return f"{QUESTIONS[number % len(QUESTIONS)]} ({number})"
