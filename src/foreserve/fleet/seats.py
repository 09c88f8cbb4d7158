"""The place of a replica: who holds it, whether it is wanted, and which place is taken or left first."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable

from foreserve.core import EngineSpec
from foreserve.fleet.replica import Replica, State

FIRST_BACKOFF_S = 0.5
MOST_BACKOFF_S = 30.0
PROVEN_S = 60.0
"""A replica that was ready this long has proven itself: its next loss counts as the first again."""

SAY_AGAIN_S = 60.0
"""How often the log says that a place still cannot be filled, where the reason is the same as before."""


def backoff(losses: int, most_s: float | None = None) -> float:
    """Seconds before the restart that follows the `losses`-th loss in a row: none after the first."""
    return (
        0.0
        if losses <= 1
        else min(FIRST_BACKOFF_S * 2.0 ** min(losses - 2, 32), MOST_BACKOFF_S if most_s is None else most_s)
    )


class Seat:
    """The place of one replica: its present holder and how often in a row a holder was lost.

    It outlives its replicas, so that the names of those (`service/index.generation`) are never given twice and a place
    that cannot be filled is not tried ever faster by being left and wanted again.
    """

    def __init__(self, index: int, spec: EngineSpec) -> None:
        self.index = index
        self.spec = spec
        self.wanted = False
        self.closing = False
        """Its server leaves: the seat goes with its replica."""
        self.replica: Replica | None = None
        """The one that it has, or that it lost and is to be started again."""
        self.generation = 0
        self.had_server = False
        """Whether a replica was ever ready here, or a server was asked for."""
        self.last_loss = ""
        """Why the last one was lost, in words; empty since another was ready."""
        self._losses = 0
        self._said_at = -math.inf
        self._not_before = 0.0
        self.timer: asyncio.TimerHandle | None = None
        """Of the next start."""
        self.retiring: asyncio.Task[None] | None = None
        """What watches over a replica that is not wanted."""

    @property
    def alive(self) -> Replica | None:
        """Its replica, unless that is gone."""
        return None if self.replica is None or self.replica.state is State.GONE else self.replica

    @property
    def ready(self) -> bool:
        """Whether its replica takes work."""
        return self.replica is not None and self.replica.state is State.READY

    def worth_saying(self, replica: Replica, now: float) -> bool:
        """Whether the log shall tell of this loss, which `lost` has not heard of yet.

        A server that is down for a night is tried every few seconds; nobody wants to read of each time.
        """
        if replica.reason == self.last_loss and now - self._said_at < SAY_AGAIN_S:
            return False
        self._said_at = now
        return True

    def lost(self, replica: Replica, now: float) -> float:
        """Its replica is gone and was not told to. Returns how long a successor has to wait, in seconds."""
        proven = replica.ready_at is not None and now - replica.ready_at >= PROVEN_S
        self._losses = 1 if proven else self._losses + 1
        self.last_loss = replica.reason
        wait = backoff(self._losses, self.spec.most_backoff_s)
        self._not_before = now + wait
        return wait

    def filled(self) -> None:
        """Its replica is ready."""
        self.had_server = True
        self.last_loss = ""

    def wait_s(self, now: float) -> float:
        """How long it is until a replica may be started here; 0 at most times."""
        return max(self._not_before - now, 0.0)

    def cancel_start(self) -> None:
        """None is started here for now."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def first_to_take(seats: Iterable[Seat]) -> list[Seat]:
    """Of those that are not wanted, best first: a replica that still works there, an empty place, one that just ends.

    A place whose holder is ending is filled when that is gone, so that there are never more replicas than places.
    """

    def rank(seat: Seat) -> tuple[int, int]:
        alive = seat.alive
        return (1 if alive is None else 0 if alive.state is State.ISOLATED else 2, seat.index)

    return sorted(seats, key=rank)


def first_to_leave(seats: Iterable[Seat], in_order: bool = False) -> list[Seat]:
    """Of those that are wanted: those without a replica, then the one that holds least; of equals the youngest.

    With `in_order` the last place comes first among those that have one.
    """

    def rank(seat: Seat) -> tuple[int, int, float, int]:
        alive = seat.alive
        if alive is None or alive.state is State.DRAINING:
            return (0, 0, 0.0, -seat.index)
        if in_order:
            return (1 if alive.state is State.STARTING else 2, 0, 0.0, -seat.index)
        return (1 if alive.state is State.STARTING else 2, len(alive.held), -alive.launched_at, -seat.index)

    return sorted(seats, key=rank)
