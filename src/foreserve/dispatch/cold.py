"""A service that may have no replica: what its dispatcher asks about one to come, and where the very first wait."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

from foreserve.dispatch.rooms import Rooms


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


class Cold:
    """True while there is no replica, of a service that may have none; false for ever of any other."""

    def __init__(self, rooms: Rooms) -> None:
        self.wanted_one: Callable[[], None] | None = None
        """Called when a request waits where there is no replica and none is about to be."""
        self.since = -math.inf
        """When the present replicas, or the present time without any, began, in loop seconds."""
        self.anteroom = Anteroom()
        self._fleet: OnDemand | None = None
        self._rooms = rooms
        self._was = False

    def allow(self, fleet: OnDemand, wanted_one: Callable[[], None]) -> None:
        """There may be none from now on. `wanted_one` is called for one, unless somebody else is already."""
        self._fleet = fleet
        self.wanted_one = self.wanted_one or wanted_one
        self._was = bool(self)

    @property
    def allowed(self) -> bool:
        """Whether there may be none."""
        return self._fleet is not None

    def __bool__(self) -> bool:
        return self._fleet is not None and not self._rooms.slots

    @property
    def limit_s(self) -> float:
        """The longest that a start may take; 0 where there is always a replica."""
        return 0.0 if self._fleet is None else self._fleet.limit_s

    def ready_in(self, now: float) -> float:
        """Seconds until the first replica is expected; 0 where there is one."""
        return self._fleet.ready_in(now) if self._fleet is not None and self else 0.0

    def want_one(self) -> None:
        """See that a replica comes, where there is none."""
        if self._fleet is not None and self and self.wanted_one is not None and not self._fleet.coming():
            self.wanted_one()

    def turned(self, now: float) -> bool:
        """Whether the first replica has come or the last one gone, since this was last asked."""
        if self._was == bool(self):
            return False
        self._was, self.since = not self._was, now
        return True


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
