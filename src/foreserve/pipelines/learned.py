"""What the requests of a pipeline have taught: how many children each map had, how long each stage took."""

from __future__ import annotations

from typing import Final

import msgspec

NEWEST: Final = 0.1
"""The weight of the newest value in a mean."""


class StageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one stage: how many `calls` were done so far, and how many `seconds` one took, in the mean of late."""

    calls: int
    seconds: float


class MapFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one map: how often it was done so far, and how many children it had, in the mean of late."""

    calls: int
    children: float


class Learned:
    """Means of late of stages and maps, by name. Calls that run inline are not measured."""

    def __init__(self) -> None:
        self.stages: dict[str, StageFacts] = {}
        self.maps: dict[str, MapFacts] = {}

    def took(self, name: str, seconds: float) -> None:
        """A call of a stage is done."""
        before = self.stages.get(name)
        calls, mean = (0, None) if before is None else (before.calls, before.seconds)
        self.stages[name] = StageFacts(calls=calls + 1, seconds=_mean(mean, seconds))

    def fanned_out(self, name: str, children: int) -> None:
        """A map is over."""
        before = self.maps.get(name)
        calls, mean = (0, None) if before is None else (before.calls, before.children)
        self.maps[name] = MapFacts(calls=calls + 1, children=_mean(mean, float(children)))


def _mean(before: float | None, value: float) -> float:
    return value if before is None else before + NEWEST * (value - before)
