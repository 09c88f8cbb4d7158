"""The parts of the simulated engine: one request as a sequence of tokens to come, and time spent in decode steps."""

from __future__ import annotations

import asyncio
import hashlib
import math
from typing import Literal

import msgspec

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
        self.joined: int | None = None  # the decode step at which token number `made + 1` came, while it is decoded
        self.made = 0  # tokens made before it joined: those of before it was preempted
        self.due = 0  # the order of its entry among the chunks that are due; 0 is none
        self.cancelled = False
        self._numbered = Numbered(work)
        self._emit_every = emit_every

    def reached(self, step: int) -> int:
        """How many tokens it has made by a decode step."""
        return self.made if self.joined is None else self.made + 1 + step - self.joined

    def kv_tokens(self, step: int) -> int:
        """What it holds of the KV cache by a decode step, from its prefill on: its prompt and what it has made."""
        return self.prompt + self.reached(step)

    def preempt(self, step: int) -> None:
        """Its KV cache is taken away; what it has made stays."""
        self.made = self.reached(step)
        self.joined = None
        self.due = 0

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

    def out_of_memory(self, token: int) -> Chunk:
        """As a row of a static batch: its end at this token, since the batch has no more room to grow."""
        ids = self.put_up_to(token)
        finish = msgspec.structs.replace(
            self.finish(), reason="error", error="the batch ran out of memory", detail={"retry": "memory"}
        )
        self.answer.end(finish)
        return self._numbered.chunk(Tokens(ids=ids) if ids else None, finish)

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
        self._began = 0.0
        self._step_s = 0.0

    @property
    def under_way(self) -> int:
        """Whole steps of the present `spend` that are over."""
        if self._wake is None or not self._step_s:
            return 0
        return int((asyncio.get_running_loop().time() - self._began) / self._step_s + _SLACK)

    def interrupt(self) -> None:
        """Have `spend` return at the end of the step that is running."""
        if self._wake is not None:
            resolve(self._wake, False)

    async def spend(self, steps: int, step_s: float) -> int:
        """Spend `steps` steps of `step_s` seconds. Returns how many were spent: fewer when interrupted."""
        loop = asyncio.get_running_loop()
        began, self._began, self._step_s = loop.time(), loop.time(), step_s
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
