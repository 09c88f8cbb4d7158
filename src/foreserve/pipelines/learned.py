"""What the requests of a pipeline have taught: how many children each map had, how long each stage took."""

from __future__ import annotations

from typing import Final

import msgspec

NEWEST: Final = 0.1
"""The weight of the newest value in a mean."""


class StageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one stage, in the mean of late: how many `seconds` a call took, and how many from its end to the request's.

    `calls` is how many were done so far. `after_s` is measured, not added up from what comes behind it: that overlaps,
    and how much of it there is depends on the fan-out. It is of requests that were done.
    """

    calls: int
    seconds: float
    after_s: float | None = None


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
        if before is None:
            self.stages[name] = StageFacts(calls=1, seconds=seconds)
        else:
            mean = _mean(before.seconds, seconds)
            self.stages[name] = StageFacts(calls=before.calls + 1, seconds=mean, after_s=before.after_s)

    def followed(self, name: str, seconds: float) -> None:
        """A request is done, `seconds` after its calls of a stage, in their mean, were."""
        before = self.stages[name]
        self.stages[name] = msgspec.structs.replace(before, after_s=_mean(before.after_s, seconds))

    def after(self, name: str) -> float:
        """How many seconds a request is expected to take once a call of a stage is done; 0 until that is known."""
        facts = self.stages.get(name)
        return 0.0 if facts is None else facts.after_s or 0.0

    def fanned_out(self, name: str, children: int) -> None:
        """A map is over."""
        before = self.maps.get(name)
        calls, mean = (0, None) if before is None else (before.calls, before.children)
        self.maps[name] = MapFacts(calls=calls + 1, children=_mean(mean, float(children)))


def _mean(before: float | None, value: float) -> float:
    return value if before is None else before + NEWEST * (value - before)
