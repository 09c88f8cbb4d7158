"""How an engine is asked while it is measured, wherever it runs: lengths go in, the times of tokens come out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from foreserve.core import Finish
from foreserve.errors import EngineStartError
from foreserve.loadgen.arrivals import Generator

Wanted = tuple[int | list[int], int]
"""A prompt or its length, and how many tokens of answer."""


class EngineLost(EngineStartError):
    """The engine ended, or refused what it was asked, while it was measured; the message says why."""


class Asked:
    """One request on its way: when it was sent, when each of its tokens came, and its end. Times: `clock.precise`."""

    def __init__(self, id: str, prompt_tokens: int, most: int, at: float) -> None:
        self.id = id
        self.prompt_tokens = prompt_tokens
        self.most = most
        self.at = at
        self.times: list[float] = []
        self.ended: float | None = None
        self.done: asyncio.Future[Finish] = asyncio.get_running_loop().create_future()
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def first_s(self) -> float:
        """Seconds from sending to the first token."""
        return self.times[0] - self.at

    def decoding(self, at: float) -> bool:
        """Of one that has ended: whether it had its first token at a time, and not yet its last."""
        return bool(self.times) and self.times[0] <= at < self.times[-1]

    def came(self, tokens: int, at: float) -> None:
        """So many tokens at once."""
        self.times += [at] * tokens
        if tokens and not self.begun.done():
            self.begun.set_result(None)

    def over(self, at: float, finish: Finish) -> None:
        """It has ended."""
        self.ended = at
        if not self.done.done():
            self.done.set_result(finish)


class Probe:
    """What every probe does alike. `vocabulary` is how many token ids there are: prompts are drawn from them by `rng`.

    What is asked raises EngineLost when it fails.
    """

    def __init__(self, rng: Generator, vocabulary: int) -> None:
        self._rng = rng
        self._vocabulary = vocabulary
        self._count = 0
        self._news = asyncio.Event()
        self._lost: str | None = None

    def prompt(self, tokens: int) -> list[int]:
        """A new one that shares no block with any other."""
        drawn: list[int] = self._rng.integers(0, self._vocabulary, tokens).tolist()
        return drawn

    def send(self, *wanted: Wanted) -> list[Asked]:
        """Ask for all of these at once."""
        raise NotImplementedError

    async def stop(self, asked: Sequence[Asked]) -> None:
        """Ask for no more of these; returns once they have stopped."""
        raise NotImplementedError

    async def ask(self, *wanted: Wanted) -> list[Asked]:
        """As `send`, and wait for the ends."""
        asked = self.send(*wanted)
        await self.ends(asked)
        return asked

    async def ends(self, asked: Sequence[Asked]) -> None:
        """Until all of these have ended."""
        for finish in await asyncio.gather(*(each.done for each in asked)):
            _accepted(finish)

    async def begin(self, asked: Sequence[Asked]) -> None:
        """Until all of these have their first token. Raises EngineLost where one failed before."""
        for each in asked:
            both: list[asyncio.Future[Any]] = [each.begun, each.done]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if each.done.done():
                _accepted(each.done.result())

    async def more(self, asked: Asked, tokens: int) -> bool:
        """Until so many more tokens of it have come; whether they have, or else it ended before.

        Raises EngineLost when it failed, or the engine is gone.
        """
        wanted = len(asked.times) + tokens
        while len(asked.times) < wanted:
            if asked.done.done():
                _accepted(asked.done.result())
                return False
            self._news.clear()
            await self._news.wait()
            if self._lost is not None:
                raise EngineLost(self._lost)
        return True

    def _name(self) -> str:
        self._count += 1
        return f"c{self._count}"


def _accepted(finish: Finish) -> None:
    if finish.reason in ("rejected", "error"):
        raise EngineLost(f"the engine refused a request of the measurement: {finish.error}")
