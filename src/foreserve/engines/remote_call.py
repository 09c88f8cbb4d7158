"""One request under way at a remote server: its waits, each bounded and cancellable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp

from foreserve.clock import now

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
