"""Serving by switching between two models: which one runs follows the load, and loading the other takes its time."""

from __future__ import annotations

from collections.abc import Sequence

from foreserve.core import Work
from foreserve.elastic.batching import Elastic
from foreserve.elastic.profile import Profile
from foreserve.ports import Pick, Room, Wait

WINDOW_S = 1.0
UP, DOWN = 0.9, 0.7
"""Shares of the better model's capacity above which the faster one is taken, and below which it is left again."""


class Switching(Elastic):
    """Our own batches and shedding, and one model at a time, by the arrivals of the last second."""

    def __init__(self, profile: Profile, models: Sequence[str], capacity: float, size: int) -> None:
        """`models` are named as settings, the faster one first; `capacity` is the other's, requests a second."""
        super().__init__(profile, size=size, foresight=False)
        self._models = models
        self._capacity = capacity
        self._model = self._models[-1]
        self._came: list[float] = []

    def add(self, work: Work, now: float) -> None:
        self._came.append(now)
        super().add(work, now)

    def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
        self._came = [at for at in self._came if at > now - WINDOW_S]
        rate = len(self._came) / WINDOW_S
        if rate > UP * self._capacity:
            self._model = self._models[0]
        elif rate < DOWN * self._capacity:
            self._model = self._models[-1]
        for batch in self._forming:
            batch.plans = (self._model,)
            batch.drop("")  # nobody; what was worked out of it is worked out anew
        return super().pick(rooms, now)
