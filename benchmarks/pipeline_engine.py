"""An engine that takes the time of a cost model and says what a script says: the fact checker's language model.

What it says depends on the prompt alone, so every way of running the application gives the same verdicts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np

from foreserve.core import Chunk, EngineSpec, Work
from foreserve.engines.generation import Generate, Tokens
from foreserve.engines.simulated import SimulatedEngine
from foreserve.services.llm import LLM

CHARS_PER_TOKEN = 4
"""Of text that is said. A prompt's bytes are its tokens here, so that a byte takes a fourth of a token's time."""

WORDS = (
    "river", "city", "year", "king", "model", "light", "stone", "house", "water", "north", "early", "great", "small",
    "known", "called", "built",
)  # fmt: skip


def said(prompt: str) -> str:
    """The answer to a prompt: of a length and a shape that its stage has, by a hash of it."""
    draw = np.random.default_rng(int.from_bytes(blake2b(prompt.encode(), digest_size=8).digest(), "little"))

    def sentence(least: int, most: int) -> str:
        return " ".join(WORDS[i] for i in draw.integers(0, len(WORDS), int(draw.integers(least, most + 1))))

    if "Claim:" in prompt and "Text:" in prompt:
        return "yes" if draw.random() < 0.5 else "no"
    if "Claim:" in prompt:
        return "\n".join(sentence(4, 8) for _ in range(2))
    if "Text:" in prompt:
        return "\n".join(f"{number}. {sentence(6, 12)}" for number in range(1, int(draw.integers(2, 4))))
    return ". ".join(sentence(8, 16) for _ in range(int(draw.integers(2, 5)))) + "."


def pieces_of(text: str) -> list[bytes]:
    """What is said in each step."""
    data = text.encode()
    return [data[at : at + CHARS_PER_TOKEN] for at in range(0, len(data), CHARS_PER_TOKEN)]


class ScriptedEngine(SimulatedEngine):
    """`SimulatedEngine`, one step for each piece of what is said."""

    async def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """See `Engine`."""
        asked = work.payload if isinstance(work.payload, Generate) else msgspec.convert(work.payload, Generate)
        # The prompt of an answer that goes on elsewhere has what was said before at its end.
        begun = len(asked.prompt) - asked.continued
        whole = said(bytes(token for token in asked.prompt[:begun] if token < 256).decode(errors="replace"))
        pieces = pieces_of(whole[asked.continued :])
        sized = msgspec.structs.replace(asked, max_tokens=max(len(pieces), 1))
        at = 0
        async for chunk in super().run(msgspec.structs.replace(work, payload=sized), plan):
            if chunk.data is not None:
                count = len(chunk.data.ids)
                told = Tokens(ids=list(b"".join(pieces[at : at + count])))
                at += count
                chunk = msgspec.structs.replace(chunk, data=told)
            yield chunk


class ScriptedLLM(LLM):
    """A language model on that engine, in the event loop: `engine` are the options of `SimulatedEngine`."""

    def __init__(self, *, engine: dict[str, Any], **words: Any) -> None:
        super().__init__("simulated", launcher="inline", context_tokens=8192, **words)
        self._engine_words = {"context_tokens": 8192, "emit_every": 1, **engine}

    def engines(self) -> list[EngineSpec]:
        """See `Kind`."""
        self.prepare()
        spec = EngineSpec(factory="benchmarks.pipeline_engine:ScriptedEngine", options=self._engine_words)
        return [spec] * self.settings.bounds[1]
