"""An engine that does what the prompt's last user line says, and an LLM that runs on it.

The line is steps joined by `|`: `say TEXT` (one chunk), `wait SECONDS`, `hang` (until it is cancelled), `length`,
`fail WORDS`, `reject WORDS`. Without an end of its own it stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from foreserve.core import Chunk, EngineInfo, EngineLoad, EngineSpec, Finish, Work
from foreserve.engines.generation import FEATURES, Generate, Tokens
from foreserve.services.llm import LLM

ENDS = {"fail": "error", "reject": "rejected", "length": "length"}
seen: list[Generate] = []
"""Every payload that reached an engine."""
cancelled: list[str] = []
"""Ids that an engine was told to cancel."""


class ScriptedEngine:
    def __init__(self, slots: int, features: list[str]) -> None:
        self._slots = slots
        self._features = tuple(features)
        self._cancels: dict[str, asyncio.Event] = {}

    async def start(self) -> EngineInfo:
        return EngineInfo(
            batching="continuous",
            capacity={"slots": self._slots, "kv_tokens": 65536},
            features=self._features,
            facts={"context_tokens": 2048},
        )

    async def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        asked = work.payload if isinstance(work.payload, Generate) else msgspec.convert(work.payload, Generate)
        seen.append(asked)
        gone = self._cancels[work.id] = asyncio.Event()
        index, output = 0, 0
        text = bytes(token for token in asked.prompt if token < 256).decode(errors="replace")
        line = text.rpartition("user: ")[2].partition("\nassistant:")[0]
        finish = Finish(reason="stop")
        for step in line.split("|"):
            name, _, words = step.partition(" ")
            if name == "say":
                ids = list(words.encode())
                output += len(ids)
                logprobs = [-0.5] * len(ids) if asked.logprobs is not None else None
                top = [[(i, -0.5), (i + 1, -1.5)] for i in ids] if asked.logprobs else None
                data = Tokens(ids=ids, logprobs=logprobs, top=top)
                yield Chunk(id=work.id, index=index, attempt=work.attempt, data=data)
                index += 1
            elif name in ("wait", "hang"):
                try:
                    await asyncio.wait_for(gone.wait(), float(words or 3600))
                except TimeoutError:
                    continue
                finish = Finish(reason="cancelled")
                break
            elif name in ENDS:
                finish = Finish(reason=ENDS[name], error=words or None)  # type: ignore[arg-type]
                break
        usage = {"prompt_tokens": len(asked.prompt), "output_tokens": output}
        yield Chunk(id=work.id, index=index, attempt=work.attempt, finish=msgspec.structs.replace(finish, usage=usage))

    async def cancel(self, request_id: str) -> None:
        cancelled.append(request_id)
        if request_id in self._cancels:
            self._cancels[request_id].set()

    async def load(self) -> EngineLoad:
        return EngineLoad()

    async def close(self) -> None: ...


class ScriptedLLM(LLM):
    def __init__(self, *, slots: int = 8, features: tuple[str, ...] = FEATURES, **words: Any) -> None:
        super().__init__("simulated", launcher="inline", context_tokens=2048, **words)
        self._slots = slots
        self._features = features

    def engines(self) -> list[EngineSpec]:
        self.prepare()
        options = {"slots": self._slots, "features": list(self._features)}
        return [EngineSpec(factory="tests.gateway.scripted:ScriptedEngine", options=options)] * self.settings.bounds[1]
