"""How many replicas there are, how many work and how full they are: integrals, taken whenever that changes."""

from __future__ import annotations

import asyncio

from foreserve.simulation.replica import SimulatedConnection
from foreserve.simulation.windows import Windows


class _One:
    __slots__ = ("holds", "since", "slots")

    def __init__(self, since: float) -> None:
        self.since = since
        self.slots = 0
        self.holds = 0


class Presence:
    """Of the replicas of one service. What happens before `begin` counts for `replica_s` alone."""

    def __init__(self, windows: Windows) -> None:
        self.replica_s = 0.0
        """Seconds of all replicas from their launch to their end, added up."""
        self.starts = 0
        self.stops = 0
        """Of replicas, for whatever reason, since `begin`."""
        self._windows = windows
        self._began: float | None = None
        self._over = False
        self._there: dict[SimulatedConnection, _One] = {}
        self._loop = asyncio.get_running_loop()

    def launched(self, connection: SimulatedConnection) -> None:
        """See `SimulatedLauncher.launched`."""
        if self._over:
            return
        self._there[connection] = _One(self._loop.time())
        self.starts += self._began is not None
        connection.changed = self._changed

    def begin(self) -> None:
        """The windows begin now."""
        self._pass()
        self._began = self._loop.time()

    def end(self) -> None:
        """Count up to now, and no further."""
        self._pass()
        self._over = True
        for connection in self._there:
            connection.changed = None
        self._there.clear()

    def _pass(self) -> None:
        now = self._loop.time()
        for one in self._there.values():
            self._count(one, now)

    def _changed(self, connection: SimulatedConnection) -> None:
        one = self._there[connection]
        slots, holds = connection.slots, connection.holds
        if slots != one.slots or holds != one.holds or connection.ending:
            self._count(one, self._loop.time())
            one.slots, one.holds = slots, holds
            if connection.ending:
                del self._there[connection]
                connection.changed = None
                self.stops += self._began is not None

    def _count(self, one: _One, now: float) -> None:
        """As it has been since it last changed."""
        since, one.since = one.since, now
        self.replica_s += now - since
        if self._began is None:
            return
        for window, seconds in self._windows.during(since - self._began, now - self._began):
            window.replica_s += seconds
            if one.slots:
                window.ready_s += seconds
                window.slot_s += seconds * one.slots
                if one.holds:
                    window.busy_s += seconds
                    window.held_s += seconds * one.holds
