"""One request under way at a remote server: its waits, each bounded and cancellable, and its chunks, numbered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp

from foreserve.clock import now
from foreserve.core import Chunk, Finish, Work
from foreserve.engines.forwarding import Answer

T = TypeVar("T")


class Cancelled(Exception):
    """The request was cancelled."""


class Silent(Exception):
    """The server said nothing for too long."""


class Lost(Exception):
    """The server is gone, and nothing of the answer had come."""


class Call:
    """One request under way: each of its waits ends after a limit, or when it is cancelled."""

    def __init__(self) -> None:
        self._cancelled = False
        self._scope: asyncio.Timeout | None = None

    async def within(self, step: Callable[[], Awaitable[T]], limit_s: float | None) -> T:
        """`await step()`. Raises Silent after `limit_s` seconds, Cancelled as soon as it is cancelled.

        Only a wait for the client may have no limit here: who sends to the client cancels when it takes nothing.
        """
        if self._cancelled:
            raise Cancelled
        try:
            async with asyncio.timeout(limit_s) as self._scope:
                return await step()
        except TimeoutError as error:
            # aiohttp's connection timeout is one as well, and means that the server is not there.
            if isinstance(error, aiohttp.ClientError):
                raise
            raise (Cancelled if self._cancelled else Silent) from None
        finally:
            self._scope = None

    def cancel(self) -> None:
        self._cancelled = True
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(now())


class Numbered:
    """The chunks of one work, numbered."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._index = -1

    @property
    def any(self) -> bool:
        """Whether there has been one."""
        return self._index >= 0

    def data(self, data: Answer) -> Chunk:
        return self._next(data, None)

    def finish(self, finish: Finish) -> Chunk:
        return self._next(None, finish)

    def _next(self, data: Answer | None, finish: Finish | None) -> Chunk:
        self._index += 1
        return Chunk(id=self._work.id, index=self._index, data=data, attempt=self._work.attempt, finish=finish)
