"""An app of pipelines over a scripted language model and functions; tests import it, workers too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import foreserve as fs
from tests.gateway.scripted import ScriptedLLM

chat = ScriptedLLM(slots=4)


@fs.function(launcher="inline")
def count_letters(words: list[str]) -> dict[str, int]:
    return {"letters": sum(len(word) for word in words)}


@fs.function(launcher="inline")
def halves(text: str) -> Iterator[str]:
    yield text[: len(text) // 2]
    yield text[len(text) // 2 :]


@fs.function(launcher="inline")
def breaks(text: str) -> str:
    raise ValueError("as it must")


@fs.function(launcher="inline", replicas=2)
async def sums(words: fs.Stream[str], more: fs.Stream[str], start: int = 0) -> list[Any]:
    """Adds up both, whatever comes first."""
    letters = [len(word) async for word in words]
    return [start + sum(letters), await more.to_list()]


@fs.function(launcher="inline")
async def echoes(words: fs.Stream[str]) -> AsyncIterator[str]:
    async for word in words:
        yield word.upper()


answer = fs.ask(chat, "{script}", name="answer", max_tokens=64)
repeat = fs.ask(chat, "say {claim}|say !", name="repeat")


@fs.pipeline(model=True)
def checked(script: str) -> Any:
    said = answer(script)

    def check(claim: Any) -> Any:
        return fs.join(claim=repeat(claim), counted=count_letters(claim.split(fs.words)), halves=halves(claim))

    return {"answer": said, "claims": said.split(fs.items).map(check)}


@fs.pipeline
def failing(text: str) -> Any:
    return fs.join(answer("hang"), breaks(text))


@fs.pipeline
def fed(script: str) -> Any:
    said = answer(script)
    summed = said.split(fs.lines).map(
        lambda line: sums(line.split(fs.words), line.split(fs.split_at(","))), ordered=True
    )
    return {"sums": summed, "echoes": echoes(said.split(fs.words))}


def app(**words: Any) -> fs.App:
    return fs.App(
        chat=chat, count_letters=count_letters, halves=halves, breaks=breaks, checked=checked, failing=failing,
        sums=sums, echoes=echoes, fed=fed,
        state={"history": False}, **words,
    )  # fmt: skip
