"""Room kept for a request that others overtook too often because it is large."""

from __future__ import annotations

from collections.abc import Sequence

from foreserve.core import fits
from foreserve.dispatch.buckets import Waiting
from foreserve.ports import Room

FORGOTTEN_S = 60.0
"""A replica that had no room to show for so long is taken for gone, and room is kept at another."""


class Keeping:
    """Who fits no room may be overtaken by who does, so that no room lies idle, but not for ever.

    Each time another is started in its place counts; after `most_passed` of them the replica that is nearest to having
    room is kept: nothing else is started there until the request itself is. That is once what runs there has ended, at
    the latest. One request at a time has room kept, the first that came so far.
    """

    def __init__(self, most_passed: int) -> None:
        self._most_passed = most_passed
        self.kept: Waiting | None = None
        self._replica = ""
        self._seen = 0.0

    def rooms_for(self, waiting: Waiting, rooms: Sequence[Room], now: float) -> tuple[str, ...] | None:
        """Where it may start now; empty: wherever it fits. `None` when nowhere."""
        works = (waiting.work,)
        if self.kept is None or waiting is self.kept:
            for room in rooms:
                if room.takes(works):
                    return ()
            return None
        if any(room.replica == self._replica for room in rooms):
            self._seen = now
        elif now - self._seen > FORGOTTEN_S:
            self._keep(self.kept, rooms, now)
        others = tuple(room.replica for room in rooms if room.replica != self._replica and room.takes(works))
        return others or None

    def passed_over(self, passed: Sequence[Waiting], rooms: Sequence[Room], now: float) -> None:
        """Another starts in place of these, which fit nowhere."""
        for waiting in passed:
            waiting.passed += 1
            if self.kept is None and waiting.passed >= self._most_passed:
                self._keep(waiting, rooms, now)

    def forget(self, waiting: Waiting) -> None:
        """It has been started, or has left."""
        if waiting is self.kept:
            self.kept = None

    def _keep(self, waiting: Waiting, rooms: Sequence[Room], now: float) -> None:
        """At the replica of which the smallest part is in use, of those where it could ever run."""
        able = [room for room in rooms if fits(waiting.work.cost, room.capacity)]
        if able:
            self.kept, self._seen = waiting, now
            self._replica = min(able, key=lambda room: (_used(room), room.replica)).replica


def _used(room: Room) -> float:
    """The share in use of what it has least of, 0 to 1."""
    return max(
        (1 - room.free[name] / most for name, most in room.capacity.items() if most and name in room.free), default=0
    )
