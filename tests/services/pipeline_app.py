"""An app of pipelines over a scripted language model and functions; tests import it, workers too."""

from __future__ import annotations

from collections.abc import Iterator
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


def app(**words: Any) -> fs.App:
    return fs.App(
        chat=chat, count_letters=count_letters, halves=halves, breaks=breaks, checked=checked, failing=failing,
        state={"history": False}, **words,
    )  # fmt: skip
