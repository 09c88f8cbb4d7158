"""The fact checker in LangGraph, against our OpenAI endpoint: asynchronous, models streaming, a subgraph for each
sentence and within it one for each claim, so that no sibling waits for another, and `Send` for all three fan-outs. Its
packages are the extra `peers`.
"""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic import SecretStr

from benchmarks.pipeline_app import (
    ANSWER,
    APPRAISE,
    ASK_FOR,
    EXTRACT,
    LIMITS,
    STOPS,
    SYSTEM,
    best,
    claims_of,
    fused,
    judged,
    lexical_scores,
    passages,
    queries_of,
    reranked,
    sentences_of,
    terms,
)
from benchmarks.pipeline_client import Meaning
from foreserve.pipelines.splitting import pieces_of


class Request(TypedDict, total=False):
    """The state of the whole graph."""

    question: str
    answer: str
    verdicts: Annotated[list[tuple[tuple[int, int], dict[str, Any]]], operator.add]


class OneSentence(TypedDict, total=False):
    """The state of one sentence's subgraph; what it has in common with the others' would be written back to them."""

    place: int
    sentence: str
    claims: list[str]
    verdicts: Annotated[list[tuple[tuple[int, int], dict[str, Any]]], operator.add]


class OneClaim(TypedDict, total=False):
    """The state of one claim's subgraph."""

    number: tuple[int, int]
    claim: str
    queries: list[str]
    found: Annotated[list[tuple[int, list[int]]], operator.add]
    evidence: str
    verdicts: list[tuple[tuple[int, int], dict[str, Any]]]


class OneQuery(TypedDict):
    """What a search is given."""

    number: int
    query: str


def graph(url: str, meaning: Meaning) -> Any:
    """The compiled graph."""
    import numpy as np

    def model(stage: str) -> ChatOpenAI:
        return ChatOpenAI(
            base_url=f"{url}/v1", api_key=SecretStr("-"), model="chat", temperature=0.0, streaming=True, timeout=3600,
            max_retries=0, max_completion_tokens=LIMITS[stage], stop_sequences=list(STOPS.get(stage, ())) or None,
        )  # fmt: skip

    models = {stage: model(stage) for stage in LIMITS}

    async def said(stage: str, prompt: str, system: str = "") -> str:
        messages = [("system", system)] if system else []
        reply = await models[stage].ainvoke([*messages, ("user", prompt)])
        return str(reply.content)

    async def answer(state: Request) -> Request:
        return {"answer": await said("answer", ANSWER.format(question=state["question"]), SYSTEM)}

    def each_sentence(state: Request) -> Any:
        found = pieces_of(state["answer"], sentences_of)
        return [Send("sentence", {"place": n, "sentence": sentence}) for n, sentence in enumerate(found)] or END

    async def extract(state: OneSentence) -> OneSentence:
        return {"claims": pieces_of(await said("extract", EXTRACT.format(text=state["sentence"])), claims_of)}

    def each_claim(state: OneSentence) -> Any:
        of, claims = state["place"], state["claims"]
        return [Send("check", {"number": (of, n), "claim": claim}) for n, claim in enumerate(claims)] or END

    async def ask_for(state: OneClaim) -> OneClaim:
        return {"queries": pieces_of(await said("ask_for", ASK_FOR.format(claim=state["claim"])), queries_of)}

    def each_query(state: OneClaim) -> Any:
        return [Send("search", {"number": n, "query": query}) for n, query in enumerate(state["queries"])] or "fuse"

    async def search(state: OneQuery) -> OneClaim:
        scores = np.zeros(len(passages))
        for word in state["query"].split():
            lexical_scores(terms(word), scores)
        return {"found": [(state["number"], reranked(best(scores), await meaning(state["query"])))]}

    async def fuse(state: OneClaim) -> OneClaim:
        return {"evidence": fused([numbers for _, numbers in sorted(state.get("found", []))])}

    async def appraise(state: OneClaim) -> OneClaim:
        word = "no"
        if state["evidence"]:
            word = await said("appraise", APPRAISE.format(evidence=state["evidence"], claim=state["claim"]))
        return {"verdicts": [(state["number"], judged(state["claim"], state["evidence"], word))]}

    claim = StateGraph(OneClaim)
    for name, node in (("ask_for", ask_for), ("search", search), ("fuse", fuse), ("appraise", appraise)):
        claim.add_node(name, node)
    claim.add_edge(START, "ask_for")
    claim.add_conditional_edges("ask_for", each_query, ["search", "fuse"])
    claim.add_edge("search", "fuse")
    claim.add_edge("fuse", "appraise")
    claim.add_edge("appraise", END)

    sentence = StateGraph(OneSentence)
    sentence.add_node("extract", extract)
    sentence.add_node("check", claim.compile())
    sentence.add_edge(START, "extract")
    sentence.add_conditional_edges("extract", each_claim, ["check", END])
    sentence.add_edge("check", END)

    whole = StateGraph(Request)
    whole.add_node("answer", answer)
    whole.add_node("sentence", sentence.compile())
    whole.add_edge(START, "answer")
    whole.add_conditional_edges("answer", each_sentence, ["sentence", END])
    whole.add_edge("sentence", END)
    return whole.compile()


class LangGraph:
    """A side of the comparison."""

    def __init__(self, url: str, meaning: Meaning) -> None:
        self._graph = graph(url, meaning)

    async def __call__(self, question: str) -> Any:
        """One request."""
        state = await self._graph.ainvoke({"question": question, "verdicts": []})
        return {
            "answer": state["answer"],
            "verdicts": [verdict for _, verdict in sorted(state["verdicts"], key=_first)],
        }


def _first(pair: tuple[tuple[int, int], Any]) -> tuple[int, int]:
    return pair[0]
