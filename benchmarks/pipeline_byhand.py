"""The fact checker by hand, with asyncio and our OpenAI endpoint: what a pipeline does, written out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from openai import AsyncOpenAI

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
from foreserve.pipelines.splitting import Splitter


class ByHand:
    """A side of the comparison."""

    def __init__(self, url: str, meaning: Meaning) -> None:
        self._client = AsyncOpenAI(base_url=f"{url}/v1", api_key="-", timeout=3600, max_retries=0)
        self._meaning = meaning

    async def __call__(self, question: str) -> Any:
        """One request: a task for each sentence as soon as it is complete, one for each claim, one for each query."""
        parser, answer, taken = sentences_of.parser(), "", list[asyncio.Task[list[dict[str, Any]]]]()
        async for part in self._say("answer", ANSWER.format(question=question), SYSTEM):
            answer += part
            taken += [asyncio.create_task(self._sentence(piece.text)) for piece in parser.feed(part)]
        taken += [asyncio.create_task(self._sentence(piece.text)) for piece in parser.close()]
        return {"answer": answer, "verdicts": [verdict for each in await asyncio.gather(*taken) for verdict in each]}

    async def _sentence(self, sentence: str) -> list[dict[str, Any]]:
        checks = [
            asyncio.create_task(self._check(claim))
            async for claim in self._pieces("extract", EXTRACT.format(text=sentence), claims_of)
        ]
        return list(await asyncio.gather(*checks))

    async def _say(self, stage: str, prompt: str, system: str = "") -> AsyncIterator[str]:
        messages: list[Any] = [{"role": "user", "content": prompt}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        stop = list(STOPS.get(stage, ())) or None
        stream = await self._client.chat.completions.create(
            model="chat", messages=messages, temperature=0.0, max_tokens=LIMITS[stage], stop=stop, stream=True
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content

    async def _pieces(self, stage: str, prompt: str, splitter: Splitter) -> AsyncIterator[str]:
        parser = splitter.parser()
        async for part in self._say(stage, prompt):
            for piece in parser.feed(part):
                yield piece.text
        for piece in parser.close():
            yield piece.text

    async def _check(self, claim: str) -> dict[str, Any]:
        prompt = ASK_FOR.format(claim=claim)
        searches = [
            asyncio.create_task(self._search(query)) async for query in self._pieces("ask_for", prompt, queries_of)
        ]
        evidence = fused(list(await asyncio.gather(*searches)))
        word = "no"
        if evidence:
            said = self._say("appraise", APPRAISE.format(evidence=evidence, claim=claim))
            word = "".join([part async for part in said])
        return judged(claim, evidence, word)

    async def _search(self, query: str) -> list[int]:
        scores = np.zeros(len(passages))
        for word in query.split():
            lexical_scores(terms(word), scores)
        return reranked(best(scores), await self._meaning(query))
