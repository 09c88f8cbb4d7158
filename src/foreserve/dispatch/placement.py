"""Where picked work runs, by counts alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from foreserve.core import Work
from foreserve.ports import Room


class LeastRequests:
    """`least_requests`: the replica with the smallest running share of its slots, by name where they are equal."""

    by_rank: ClassVar[bool] = True

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        return min(rooms, key=self.rank).replica

    def rank(self, room: Room) -> tuple[float, str]:
        """See `ports.Ranked`."""
        return room.running / max(room.capacity.get("slots", 1), 1), room.replica


class LeastTokens:
    """`least_tokens`: the replica with the fewest tokens in flight, prompts and foreseen answers, by name where equal.

    Where replicas tell how many they hold at most (`kv_tokens`) it is the smallest share of that: the least utilised.
    """

    by_rank: ClassVar[bool] = True

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        return min(rooms, key=self.rank).replica

    def rank(self, room: Room) -> tuple[float, float, str]:
        """See `ports.Ranked`."""
        return room.tokens / (room.most("kv_tokens") or 1.0), room.running, room.replica


class RoundRobin:
    """`round_robin`: each replica in turn, by name, skipping those without room."""

    def __init__(self) -> None:
        self._last = ""

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        names = sorted(room.replica for room in rooms)
        self._last = next((name for name in names if name > self._last), names[0])
        return self._last
