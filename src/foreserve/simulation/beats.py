"""Heartbeats of simulated replicas: one timer for all, and hardly any of those that have nothing to do."""

from __future__ import annotations

import asyncio
import math
from typing import Protocol


class Beating(Protocol):
    """A replica that can tell how it is."""

    @property
    def busy(self) -> bool:
        """Whether its load may have changed since it last told of it."""
        ...

    def beat(self) -> None:
        """Tell the load."""
        ...


class Beats:
    """Has its replicas beat every `every_s` seconds, at whole multiples of it.

    An idle replica's load does not change: once it has been told, it is told again every `idle_s` seconds only, so that
    nobody takes the silence for a death.
    """

    def __init__(self, every_s: float, idle_s: float) -> None:
        self._every_s = every_s
        self._idle_s = idle_s
        self._busy: dict[Beating, None] = {}
        self._idle: dict[Beating, float] = {}
        """When each is to beat again; longest silent first."""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, replica: Beating) -> None:
        """It is ready, or has something to do again."""
        if replica in self._busy:
            return
        self._idle.pop(replica, None)
        self._busy[replica] = None
        self._arm(self._next(self._loop.time()))

    def remove(self, replica: Beating) -> None:
        """It is gone."""
        self._busy.pop(replica, None)
        self._idle.pop(replica, None)
        if self._timer is not None and not self._busy and not self._idle:
            self._timer.cancel()
            self._timer = None

    def _next(self, now: float) -> float:
        """The first whole multiple after `now`."""
        beat = math.floor(now / self._every_s)
        while (at := beat * self._every_s) <= now:  # the quotient is rounded: one more may still be now
            beat += 1
        return at

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        for replica in list(self._busy):
            replica.beat()
            if not replica.busy and replica in self._busy:
                del self._busy[replica]
                self._idle[replica] = now + self._idle_s
        for replica, due in list(self._idle.items()):
            if due > now:
                break
            replica.beat()
            if self._idle.pop(replica, None) is not None:
                self._idle[replica] = now + self._idle_s
        if self._busy:
            self._arm(self._next(now))
        elif self._idle:
            self._arm(next(iter(self._idle.values())))
