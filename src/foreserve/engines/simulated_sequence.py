"""The parts of the simulated engine: one request as a sequence of tokens to come, and time spent in decode steps."""

from __future__ import annotations

import asyncio
import hashlib
import math
from typing import Literal

from foreserve.core import Chunk, Finish, Work
from foreserve.engines.answer import Numbered, TokenAnswer
from foreserve.engines.generation import Tokens

# Keeps a step count that is whole but for rounding from being rounded up by one.
_SLACK = 1e-9


class SimulatedSequence:
    """One request: what it will put out and how far it has come.

    Tokens are counted from 1. `emit_every` is how many make a chunk after the first (`None`: all the rest).
    """

    def __init__(self, work: Work, prompt: int, output: int, limited: bool, emit_every: int | None) -> None:
        self.work = work
        self.prompt = prompt
        self.output = output
        self.reason: Literal["stop", "length"] = "length" if limited else "stop"
        self.answer = TokenAnswer(work)
        self.joined = 0  # the decode step at which its first token came
        self.cancelled = False
        self._numbered = Numbered(work)
        self._emit_every = emit_every

    @property
    def kv_tokens(self) -> int:
        """What it holds of the KV cache from its prefill to its end."""
        return self.prompt + self.output

    @property
    def next_chunk(self) -> int:
        """The token that completes the next chunk."""
        given = self.answer.output_tokens
        if given == 0:
            return 1
        return self.output if self._emit_every is None else min(self.output, given + self._emit_every)

    def put_up_to(self, reached: int) -> list[int]:
        """Add the tokens after those given, up to number `reached`. Returns them."""
        ids = list(range(self.prompt + self.answer.output_tokens, self.prompt + min(reached, self.output)))
        self.answer.put(ids)
        return ids

    def finish(self, reason: Literal["stop", "length", "cancelled"] | None = None) -> Finish:
        """How it ends now: at its own end unless `reason` says otherwise."""
        usage = {"prompt_tokens": float(self.prompt), "output_tokens": float(self.answer.output_tokens)}
        return Finish(reason=reason or self.reason, usage=usage)

    def chunk_at(self, token: int) -> Chunk:
        """As a row of a static batch: its chunk at this token; its end when it is cancelled or complete."""
        tokens = None if self.cancelled else Tokens(ids=self.put_up_to(token))
        if token < self.output and not self.cancelled:
            return self._numbered.chunk(tokens)
        finish = self.finish("cancelled" if self.cancelled else None)
        self.answer.end(finish)
        return self._numbered.chunk(tokens, finish)


class StepTimer:
    """Spends the time of decode steps, whole ones, until somebody interrupts."""

    def __init__(self) -> None:
        self._wake: asyncio.Future[bool] | None = None

    def interrupt(self) -> None:
        """Have `spend` return at the end of the step that is running."""
        if self._wake is not None:
            resolve(self._wake, False)

    async def spend(self, steps: int, step_s: float) -> int:
        """Spend `steps` steps of `step_s` seconds. Returns how many were spent: fewer when interrupted."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._wake = loop.create_future()
        timer = loop.call_later(steps * step_s, resolve, self._wake, True)
        try:
            if await self._wake or step_s == 0.0:
                return steps
        finally:
            timer.cancel()
            self._wake = None
        steps = min(steps, math.ceil((loop.time() - began) / step_s - _SLACK))
        await asyncio.sleep(max(0.0, began + steps * step_s - loop.time()))
        return steps


def resolve(future: asyncio.Future[bool], value: bool) -> None:
    """Set the result unless there is one."""
    if not future.done():
        future.set_result(value)


def draw(seed: int, request_id: str, low: int, high: int) -> int:
    """A length in [low, high], the same for the same seed and id in every process."""
    digest = hashlib.blake2b(f"{seed}/{request_id}".encode(), digest_size=8).digest()
    return low + int.from_bytes(digest, "big") % (high - low + 1)
