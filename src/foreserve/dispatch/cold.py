"""A service that may have no replica: what its dispatcher asks about one to come, and where the very first wait."""

from __future__ import annotations

import asyncio
from typing import Protocol


class OnDemand(Protocol):
    """The fleet of a service whose first request starts a replica."""

    @property
    def limit_s(self) -> float:
        """The longest that a start may take, in seconds: so long a request waits for one."""
        ...

    def coming(self) -> bool:
        """Whether a replica starts, or will be started without being asked for."""
        ...

    def ready_in(self, now: float) -> float:
        """Seconds until a replica is expected to be ready, were it asked for now; 0 where nothing is known."""
        ...


class Anteroom:
    """Where requests wait while nobody knows what may be asked of their engine: none of it has ever been ready.

    They have no price yet, so no queue can hold them.
    """

    def __init__(self) -> None:
        self._since: dict[asyncio.Future[None], float] = {}

    def __len__(self) -> int:
        return len(self._since)

    @property
    def since(self) -> float | None:
        """When the first of them came, in loop seconds; `None` when it is empty."""
        return next(iter(self._since.values()), None)

    async def wait(self, until: float) -> None:
        """Return when it is opened, or at `until` (loop seconds)."""
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        self._since[opened] = loop.time()
        try:
            async with asyncio.timeout_at(until):
                await opened
        except TimeoutError:
            pass
        finally:
            self._since.pop(opened, None)

    def open(self) -> None:
        """Let all of them go on."""
        for opened in self._since:
            if not opened.done():
                opened.set_result(None)
