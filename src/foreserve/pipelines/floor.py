"""What the requests of one pipeline share, and in what parts: frames in flight, and turns of stages that bound them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

MOST_FRAMES: Final = 1024
"""Frames in flight of one `map` in each request, over all requests together."""


class Floor:
    """Divides `frames` evenly among the requests that run, at least one for each, and keeps the stages' gates."""

    def __init__(self, frames: int = MOST_FRAMES) -> None:
        self.frames = frames
        self.running = 0
        self._gates: dict[Any, Gate] = {}

    def share(self) -> int:
        """How many frames of one map a request may have in flight now."""
        return max(1, self.frames // max(1, self.running))

    def gate(self, step: Any, limit: int) -> Gate:
        """The gate of a step whose stage bounds how many run at once."""
        gate = self._gates.get(step)
        if gate is None:
            gate = self._gates[step] = Gate(limit)
        return gate


class Gate:
    """Lets at most `limit` in. Next is the request that has the fewest inside, of equals the one that came first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside: dict[str, int] = {}
        self._arrivals: dict[str, float] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._count = 0

    @asynccontextmanager
    async def turn(self, request: str, arrival: float) -> AsyncIterator[None]:
        """Inside from when it is this request's turn."""
        if self._count >= self.limit:
            await self._wait(request, arrival)
        else:
            self._enter(request)
        try:
            yield
        finally:
            self._leave(request)

    async def _wait(self, request: str, arrival: float) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._arrivals[request] = arrival
        self._waiting.setdefault(request, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(request)  # its turn had come already
            else:
                self._forget(request, turn)
            raise

    def _forget(self, request: str, turn: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(request)
        if waiting is not None and turn in waiting:
            waiting.remove(turn)
        if not waiting:
            self._waiting.pop(request, None)
            self._arrivals.pop(request, None)

    def _enter(self, request: str) -> None:
        self._count += 1
        self.inside[request] = self.inside.get(request, 0) + 1

    def _leave(self, request: str) -> None:
        self._count -= 1
        self.inside[request] -= 1
        if not self.inside[request]:
            del self.inside[request]
        while self._waiting and self._count < self.limit:
            following = min(self._waiting, key=lambda each: (self.inside.get(each, 0), self._arrivals[each]))
            turn = self._waiting[following].popleft()
            if not self._waiting[following]:
                del self._waiting[following], self._arrivals[following]
            if not turn.done():
                self._enter(following)
                turn.set_result(None)
