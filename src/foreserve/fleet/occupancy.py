"""What one replica holds: sums of plain costs, and a look-ahead map of each resource that works ramp up.

An engine that is given more than it has room for later preempts and computes again, which loses nothing and costs time:
the map is there to make that rare, not to make it impossible.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from foreserve.core import Cost, EngineLoad, Ramp, Work, restore, subtract
from foreserve.foresight.anticipator import Anticipator, Held

WEIGHT = 0.2
"""Of the newest heartbeat, in the moving rate of steps."""


class StepClock:
    """Counts the steps that a replica has taken from the time that passed and the length of its recent steps.

    While no step's length is known nothing passes; the time is made up for once one is.
    """

    def __init__(self) -> None:
        self._steps_per_s: float | None = None
        self._since = 0.0
        self._fraction = 0.0

    def heard(self, last_step_s: float | None) -> None:
        """A heartbeat told how long the newest step took, in seconds; `None` is not known."""
        if last_step_s is None or last_step_s <= 0:
            return
        # Rates are averaged, not lengths: a heartbeat finds a long step more often than a short one, in proportion.
        rate = 1.0 / last_step_s
        self._steps_per_s = (
            rate if self._steps_per_s is None else self._steps_per_s + WEIGHT * (rate - self._steps_per_s)
        )

    def begin(self, now: float) -> None:
        """The replica had nothing to do until now."""
        self._since, self._fraction = now, 0.0

    def passed(self, now: float) -> int:
        """Whole steps since the last call; what is left of one is carried over."""
        if self._steps_per_s is None or now <= self._since:
            return 0
        steps = self._fraction + (now - self._since) * self._steps_per_s
        whole = int(steps)
        self._since = now
        self._fraction = steps - whole
        return whole


class FrozenAhead(msgspec.Struct, frozen=True):
    """An `Ahead` as it was: `maps` has what each one that is not empty holds, and the step that it is at."""

    capacity: dict[str, float]
    maps: dict[str, tuple[int, list[Held]]]


class Ahead:
    """What can still begin on one replica, by the maps of its resources (see `ports.LookAhead`)."""

    def __init__(self, capacity: Cost) -> None:
        self.capacity = capacity
        """Of each resource, without what is set aside for works that have no ramp of it."""
        self.maps: dict[str, Anticipator] = {}

    def takes(self, ramps: Sequence[Ramp]) -> bool:
        """An empty replica takes one, whatever is foreseen of it: nothing would ever become better by waiting."""
        if len(ramps) <= 1 and not any(self.maps.values()):
            return True
        if len(ramps) == 1:
            resource = ramps[0].resource
            return resource not in self.capacity or self._fits(resource, ramps)
        resources = dict.fromkeys(ramp.resource for ramp in ramps if ramp.resource in self.capacity)
        return all(self._fits(name, [ramp for ramp in ramps if ramp.resource == name]) for name in resources)

    def peak(self, steps: int, ramps: Sequence[Ramp] = ()) -> float:
        """See `LookAhead`."""
        return max((max(levels) for levels in self._shares(steps, ramps)), default=0.0)

    def above(self, share: float, steps: int) -> float:
        """See `LookAhead`."""
        shares = [*self._shares(steps, ())]
        return max((sum(each > share for each in levels) / len(levels) for levels in shares), default=0.0)

    def _shares(self, steps: int, ramps: Sequence[Ramp]) -> Iterator[list[float]]:
        """Of each resource that has a map, what is held at each step as a share of its capacity."""
        for resource, capacity in self.capacity.items():
            if resource not in self.maps and not any(ramp.resource == resource for ramp in ramps):
                continue
            levels = self.map(resource).window(max(steps, 1))
            for ramp in ramps:
                if ramp.resource == resource:
                    for step in range(min(len(levels), max(ramp.steps, 1))):
                        levels[step] += ramp.base + step
            yield [level / capacity if capacity > 0 else float("inf") for level in levels]

    def frozen(self) -> FrozenAhead:
        """See `LookAhead`."""
        maps = {resource: (one.now, one.held()) for resource, one in self.maps.items() if one}
        return FrozenAhead(dict(self.capacity), maps)

    @classmethod
    def restored(cls, was: FrozenAhead) -> Ahead:
        """One that takes what the frozen one took."""
        ahead = cls(was.capacity)
        ahead.maps = {resource: Anticipator.restored(now, held) for resource, (now, held) in was.maps.items()}
        return ahead

    def _fits(self, resource: str, ramps: Sequence[Ramp]) -> bool:
        return self.map(resource).takes(ramps, self.capacity[resource])

    def map(self, resource: str) -> Anticipator:
        """The map of one resource."""
        known = self.maps.get(resource)
        if known is None:
            known = self.maps[resource] = Anticipator()
        return known


class Occupancy:
    """Works that were given to one replica and have not ended. Pure but for its memory: `now` (seconds) is told.

    `capacity` is the most that it holds. A resource that a work ramps up is judged by the map alone, the rest of its
    cost is summed; resources that `capacity` does not name are not limited.
    """

    def __init__(self, capacity: Cost) -> None:
        self.capacity = dict(capacity)
        self._held: dict[str, Work] = {}
        self._free = dict(capacity)
        self._ahead = Ahead(self._free)
        self._clock = StepClock()
        self._others = 0.0
        """Slots that are taken by what did not come from us."""
        self._room: tuple[dict[str, float], Ahead] | None = None
        """What was last told, while it still holds."""

    @property
    def held(self) -> Mapping[str, Work]:
        """By id, oldest first."""
        return self._held

    def start(self, works: Sequence[Work], now: float) -> None:
        """These begin now. What is still held under one of their ids is forgotten."""
        self._advance(now)
        for work in works:
            if work.id in self._held:
                self.end(work.id)
            self._held[work.id] = work
            ramp = self._ramp(work)
            self._set_free(subtract(self._free, self._plain(work, ramp)))
            if ramp is not None:
                self._ahead.map(ramp.resource).add(work.id, ramp)

    def end(self, work_id: str) -> None:
        """It has ended, however that came about. Unknown ids are ignored."""
        work = self._held.pop(work_id, None)
        if work is None:
            return
        ramp = self._ramp(work)
        # From the capacity, once nothing is held: sums of fractions would drift.
        self._set_free(restore(self._free, self._plain(work, ramp)) if self._held else dict(self.capacity))
        if ramp is not None:
            self._ahead.map(ramp.resource).remove(work.id)

    def clear(self) -> None:
        """The replica is gone."""
        for work_id in list(self._held):
            self.end(work_id)

    def heard(self, load: EngineLoad, now: float) -> None:
        """What the engine says of itself."""
        self._advance(now)
        self._clock.heard(load.last_step_s)
        if self._others != (others := float(load.others or 0)):
            self._others, self._room = others, None

    def room(self, now: float) -> tuple[dict[str, float], Ahead]:
        """What is free now, and what can still begin. Both are to be read before the next call and not kept.

        While nothing has changed, what is free is the same object as before.
        """
        self._advance(now)
        if self._room is None:
            free = self._free
            if self._others and "slots" in free:
                # One is always ours: others that fill a server for good must not keep us out of it for good.
                free = {
                    **free,
                    "slots": max(free["slots"] - self._others, 0.0 if self._held else min(1.0, free["slots"])),
                }
            for resource, ahead in self._ahead.maps.items():
                if held := ahead.held_now:
                    free = {**free, resource: free[resource] - held}
            self._room = free, self._ahead
        return self._room

    def _advance(self, now: float) -> None:
        if not self._held:
            self._clock.begin(now)
        elif steps := self._clock.passed(now):
            self._room = None
            for ahead in self._ahead.maps.values():
                ahead.advance(steps)

    def _set_free(self, free: dict[str, float]) -> None:
        self._free = self._ahead.capacity = free
        self._room = None

    def _ramp(self, work: Work) -> Ramp | None:
        """The ramp of a work, where it is of something that is limited here."""
        ramp = work.ramp
        return ramp if ramp is not None and ramp.resource in self.capacity else None

    def _plain(self, work: Work, ramp: Ramp | None) -> Cost:
        if ramp is None:
            return work.cost
        plain = dict(work.cost)
        plain.pop(ramp.resource, None)
        return plain
