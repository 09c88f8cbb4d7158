"""What one replica will hold of each resource, by the maps of its works: for policies to read (`ports.LookAhead`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from foreserve.core import Cost, Ramp
from foreserve.foresight.anticipator import Anticipator, Held


class FrozenAhead(msgspec.Struct, frozen=True, omit_defaults=True):
    """An `Ahead` as it was: `maps` has what each one that is not empty holds, and the step that it is at.

    `whole` is of every resource where that is not its `capacity`.
    """

    capacity: dict[str, float]
    maps: dict[str, tuple[int, list[Held]]]
    whole: dict[str, float] = {}
    beside: dict[str, float] = {}


class Ahead:
    """What can still begin on one replica, and how much it will hold (see `ports.LookAhead`)."""

    def __init__(self, capacity: Cost, whole: Cost | None = None) -> None:
        self.capacity = capacity
        """Of each resource that limits what may begin, without what is set aside for works that have no ramp of it."""
        self.whole = capacity if whole is None else whole
        """Of these and of those that the engine bounds by itself, all that there is."""
        self.maps: dict[str, Anticipator] = {}
        self.beside: dict[str, float] = {}
        """What the engine holds beyond the maps, by its own account: below 0 where works share what they hold."""

    def takes(self, ramps: Sequence[Ramp]) -> bool:
        """An empty replica takes one, whatever is foreseen of it: nothing would ever become better by waiting."""
        if len(ramps) == 1:
            resource = ramps[0].resource
            return resource not in self.capacity or not any(self.maps.values()) or self._fits(resource, ramps)
        resources = dict.fromkeys(ramp.resource for ramp in ramps if ramp.resource in self.capacity)
        return all(self._fits(name, [ramp for ramp in ramps if ramp.resource == name]) for name in resources)

    def peak(self, steps: int, ramps: Sequence[Ramp] = ()) -> float:
        """See `LookAhead`."""
        for ramp in ramps:
            if ramp.resource in self.whole and ramp.resource not in self.maps:
                self.map(ramp.resource)
        highest = 0.0
        for resource, known in self.maps.items():
            whole = self.whole[resource]
            ours = ramps if len(self.maps) == 1 else [ramp for ramp in ramps if ramp.resource == resource]
            level = known.peak(steps, ours) + whole - self.capacity.get(resource, whole)
            if self.beside:
                level += self.beside.get(resource, 0.0)
            share = level / whole if whole > 0 else math.inf if level > 0 else 0.0
            if share > highest:
                highest = share
        return highest

    def above(self, share: float, steps: int) -> float:
        """See `LookAhead`."""
        most = 0
        for resource, known in self.maps.items():
            whole = self.whole[resource]
            most = max(most, known.above(share * whole - self._flat(resource, whole), steps))
        return most / max(steps, 1)

    def until(self, ramp: Ramp) -> int:
        """See `LookAhead`."""
        whole = self.whole.get(ramp.resource)
        if whole is None:
            return 0
        return self.map(ramp.resource).until(ramp.base + self._flat(ramp.resource, whole), whole)

    def _flat(self, resource: str, whole: float) -> float:
        """What is held at every step alike: set aside for plain costs, or beside the maps."""
        return whole - self.capacity.get(resource, whole) + self.beside.get(resource, 0.0)

    def frozen(self) -> FrozenAhead:
        """See `LookAhead`."""
        maps = {resource: (one.now, one.held()) for resource, one in self.maps.items() if one}
        whole = {name: amount for name, amount in self.whole.items() if self.capacity.get(name) != amount}
        return FrozenAhead(dict(self.capacity), maps, whole, dict(self.beside))

    @classmethod
    def restored(cls, was: FrozenAhead) -> Ahead:
        """One that takes and foresees what the frozen one did."""
        ahead = cls(was.capacity, {**was.capacity, **was.whole})
        ahead.maps = {resource: Anticipator.restored(now, held) for resource, (now, held) in was.maps.items()}
        ahead.beside = dict(was.beside)
        return ahead

    def _fits(self, resource: str, ramps: Sequence[Ramp]) -> bool:
        return self.map(resource).takes(ramps, self.capacity[resource])

    def map(self, resource: str) -> Anticipator:
        """The map of one resource of `whole`."""
        known = self.maps.get(resource)
        if known is None:
            known = self.maps[resource] = Anticipator()
        return known
