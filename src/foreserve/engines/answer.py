"""One request's chunks on their way from an engine's step loop to their reader: numbered, coalesced, ended once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from foreserve.core import Chunk, Finish, Work
from foreserve.engines.generation import Generate, Tokens


def generate_of(work: Work) -> Generate:
    """The payload of a language model's work, which is plain values when it has crossed a process."""
    return work.payload if isinstance(work.payload, Generate) else msgspec.convert(work.payload, Generate)


def refusal(payload: Generate, context: int, vocabulary: int | None = None) -> str | None:
    """Why a prompt or its lengths cannot run, in words; `None` when they can. Engines do not all notice themselves."""
    prompt, wanted = len(payload.prompt), payload.max_tokens
    if prompt == 0 or wanted < 1:
        return "a prompt and `max_tokens` need at least 1 token each"
    if prompt + wanted > context:
        return f"{prompt} prompt and {wanted} output tokens are longer than the context of {context}"
    if vocabulary is not None and not (min(payload.prompt) >= 0 and max(payload.prompt) < vocabulary):
        return f"token ids go from 0 to {vocabulary - 1}"
    return None


class Numbered:
    """Makes the chunks of one attempt of whatever engine, with consecutive indices from 0."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._next = 0

    @property
    def any(self) -> bool:
        """Whether there has been one."""
        return self._next > 0

    def chunk(self, data: Any = None, finish: Finish | None = None) -> Chunk:
        """The next chunk."""
        chunk = Chunk(id=self.work.id, index=self._next, data=data, attempt=self.work.attempt, finish=finish)
        self._next += 1
        return chunk


class TokenAnswer:
    """Tokens that a step loop puts in and one reader takes out.

    Tokens that the reader has not asked for yet wait together and leave as one chunk, so what is held is bounded by
    the request's `max_tokens` and a slow reader costs the loop nothing. Both sides are on the event loop.
    """

    def __init__(self, work: Work, quiet: bool = False) -> None:
        """A `quiet` answer wakes its reader at its end only: what comes before is fetched by `take`."""
        self._numbered = Numbered(work)
        self._quiet = quiet
        self._ids: list[int] = []
        self._logprobs: list[float] | None = None
        self._finish: Finish | None = None
        self._news = asyncio.Event()
        self.output_tokens = 0

    @property
    def ended(self) -> bool:
        """Whether `end` has been called."""
        return self._finish is not None

    def put(self, ids: list[int], logprobs: list[float] | None = None) -> None:
        """Add tokens, with their log-probabilities if the request asked for them."""
        if not ids or self._finish is not None:
            return
        self._ids.extend(ids)
        self.output_tokens += len(ids)
        if logprobs is not None:
            self._logprobs = [*(self._logprobs or ()), *logprobs]
        if not self._quiet:
            self._news.set()

    def end(self, finish: Finish) -> None:
        """Close the answer. Only the first call counts."""
        if self._finish is None:
            self._finish = finish
            self._news.set()

    @property
    def quiet(self) -> bool:
        """Whether `take` is to be asked."""
        return self._quiet

    def take(self) -> Chunk | None:
        """The tokens that wait, unless the answer has ended: they then go with its last chunk."""
        if not self._ids or self._finish is not None:
            return None
        return self._numbered.chunk(self._waiting())

    def _waiting(self) -> Tokens | None:
        data = Tokens(ids=self._ids, logprobs=self._logprobs) if self._ids else None
        self._ids, self._logprobs = [], None
        return data

    async def chunks(self) -> AsyncIterator[Chunk]:
        """All chunks; the last one carries the finish, and the tokens that were still waiting."""
        while True:
            await self._news.wait()
            self._news.clear()
            data = self._waiting()
            finish = self._finish
            if data is not None or finish is not None:
                yield self._numbered.chunk(data, finish)
            if finish is not None:
                return
