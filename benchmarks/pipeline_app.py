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

LIMITS = {"answer": 48, "extract": 32, "ask_for": 24, "appraise": 4}
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


@fs.stage
async def merged(found: list[list[int]]) -> str:
    """See `fused`."""
    return fused(found)


@fs.stage
async def with_evidence(claims: list[str], evidence: list[str]) -> list[dict[str, str]]:
    """Each claim with what was found for it."""
    return [{"claim": claim, "evidence": text} for claim, text in zip(claims, evidence, strict=True)]


@fs.stage
async def claim_of(pair: dict[str, str]) -> str:
    """The claim of a pair."""
    return pair["claim"]


@fs.stage
async def evidence_of(pair: dict[str, str]) -> AsyncIterator[str]:
    """What was found for it, if anything was."""
    if pair["evidence"]:
        yield pair["evidence"]


def fact_checker(
    models: Mapping[str, Any], meaning: Any, by_words: Any = lexical, *, stagewise: bool = False, **words: Any
) -> Any:
    """The pipeline. `models` has the language model of each stage by name; one may serve several.

    `meaning` tells how near each passage is to a query, `by_words` which passages have words of it. With `stagewise` no
    stage begins before the one before it is done with all of the request, as in frameworks that go step by step.
    """

    def asks(name: str, template: str, system: str = "") -> Any:
        return fs.ask(
            models[name], template, system=system, name=name, max_tokens=LIMITS[name], temperature=0.0,
            stop=STOPS.get(name, ()),
        )  # fmt: skip

    answer, extract = asks("answer", ANSWER, SYSTEM), asks("extract", EXTRACT)
    ask_for, appraise = asks("ask_for", ASK_FOR), asks("appraise", APPRAISE)

    def search(query: Any) -> Any:
        return rerank(by_words(query.split(fs.words)), meaning(query))

    def claims_in(written: Any) -> Any:
        return written.split(sentences_of).map(lambda sentence: extract(sentence).split(claims_of)).flatten()

    def checked(question: str) -> Any:
        written = answer(question)

        def check(claim: Any) -> Any:
            evidence = fuse(ask_for(claim).split(queries_of).map(search))
            return verdict(claim, evidence, evidence.map(lambda texts: appraise(evidence=texts, claim=claim)))

        return {"answer": written, "verdicts": claims_in(written).map(check)}

    def by_stages(question: str) -> Any:
        written = answer(question)
        claims = claims_in(written).gather()
        queries = claims.each().map(lambda claim: ask_for(claim).split(queries_of)).gather()
        found = queries.each().map(lambda each: each.each().map(search)).gather()
        evidence = found.each().map(merged).gather()

        def check(pair: Any) -> Any:
            claim, texts = claim_of(pair), evidence_of(pair)
            return verdict(claim, texts, texts.map(lambda text: appraise(evidence=text, claim=claim)))

        return {"answer": written, "verdicts": with_evidence(claims, evidence).each().map(check)}

    return fs.pipeline(**words)(by_stages if stagewise else checked)


SUBJECTS = (
    "Paris", "penicillin", "Mount Everest", "Shakespeare", "the planet Jupiter", "the Second World War", "Isaac Newton",
    "the river Nile", "the Mona Lisa", "photosynthesis", "the World Wide Web", "Tokyo", "Charles Darwin", "the Moon",
    "Mozart", "the blue whale",
)  # fmt: skip


def question(number: int) -> str:
    """The subjects in turn, each of its own words so that no two are alike."""
    return f"Tell me about {SUBJECTS[number % len(SUBJECTS)]}. ({number})"
