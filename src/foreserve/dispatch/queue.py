"""Those that wait for a replica: how many of each tenant, and until when each of them may."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from foreserve.dispatch.cold import Cold
from foreserve.dispatch.flight import Flight
from foreserve.dispatch.pace import Pace


class Queue:
    """Keeps count of what waits and sets the timers of the latest starts; the order is the batch policy's.

    `max_wait_s` bounds the wait with a replica, the fleet's start limit that without one; `overdue` is called for who
    has waited as long as it may.
    """

    def __init__(self, pace: Pace, cold: Cold, *, max_wait_s: float, overdue: Callable[[Flight], None]) -> None:
        self.flights: dict[str, Flight] = {}
        """By id, in the order in which they joined. Changed here alone."""
        self.tenants: dict[str, int] = {}
        """How many wait, of those tenants of which any do."""
        self._pace = pace
        self._cold = cold
        self._max_wait_s = max_wait_s
        self._overdue = overdue
        self._came: list[Flight] = []
        """Those that have joined since the last turn."""
        self._most = 0

    def add(self, flight: Flight) -> None:
        """It waits from now on; its timer is set at the end of the coming turn."""
        self.flights[flight.work.id] = flight
        self.tenants[flight.work.tenant] = self.tenants.get(flight.work.tenant, 0) + 1
        self._set_latest_start(flight)
        self._came.append(flight)

    def remove(self, request_id: str) -> None:
        """It waits no more, if it did."""
        flight = self.flights.pop(request_id, None)
        if flight is None:
            return
        tenant = flight.work.tenant
        self.tenants[tenant] -= 1
        if not self.tenants[tenant]:
            del self.tenants[tenant]

    def turn_over(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the timers of those that came and were not started in the same turn, as most are."""
        self._most = max(self._most, len(self.flights))
        for flight in self._came:
            if self.flights.get(flight.work.id) is flight:
                flight.wait(loop, self._overdue)
        self._came.clear()

    def judge_anew(self, loop: asyncio.AbstractEventLoop) -> None:
        """The first replica has come or the last one gone: other limits hold from now."""
        for flight in self.flights.values():
            self._set_latest_start(flight)
            flight.wait(loop, self._overdue)

    def most(self, *, turn_to_come: bool) -> int:
        """The most that were left waiting by a turn since this was last asked."""
        most = self._most
        self._most = 0 if turn_to_come else len(self.flights)  # a turn to come will tell
        return most

    def __len__(self) -> int:
        """Of all that wait, those included for which nobody knows yet what they cost."""
        return len(self.flights) + len(self._cold.anteroom)

    @property
    def since(self) -> float | None:
        """When the one that waits longest came to wait; `None` when none does."""
        first = next(iter(self.flights.values()), None)
        times = (self._cold.anteroom.since, None if first is None else first.waits_since)
        return min((at for at in times if at is not None), default=None)

    @property
    def most_wait_s(self) -> float:
        """How long one may wait as things are."""
        return self._cold.limit_s if self._cold else self._max_wait_s

    def waited(self, flight: Flight, now: float) -> float:
        """How much of `most_wait_s` is over."""
        return now - max(flight.waits_since, self._cold.since)

    def _set_latest_start(self, flight: Flight) -> None:
        """Where there may be no replica, the time without one and the time with one are judged apart, and together."""
        latest_start = max(flight.waits_since, self._cold.since) + self.most_wait_s
        if self._cold.allowed:
            latest_start = min(latest_start, flight.waits_since + self._cold.limit_s + self._max_wait_s)
        if flight.work.deadline is not None:
            latest_start = min(latest_start, flight.work.deadline - self._pace.least_service(flight.work.forecast))
        flight.latest_start = latest_start
