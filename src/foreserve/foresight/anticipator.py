"""How much of one resource a replica will hold, step by step: each request is a ramp that grows by one a step.

The ramps of a replica together are U(a) = A + a * B at step a, where B counts the ramps and A sums their bases, each
less the step it began at. Both change only where a ramp ends, so the map is two differences at each of those steps:
what other maps keep in rings of the size of the longest answer is here a table as large as what is held. All numbers
are integers, so nothing drifts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

import msgspec

from foreserve.core import Ramp

EXTENSION = 0.2
"""Of its prediction, is what a ramp is extended by when it outlives that, again and again."""
LEAST_EXTENSION = 16
"""Steps; a short answer that goes on is not asked after every few steps."""


_NEVER = 2**63


class Held(msgspec.Struct, array_like=True):
    """One ramp on the map, in absolute steps: it began at `began` and is foreseen to end at `end`, at most at `last`.

    Beyond `last` it cannot grow; `flat` is then what it holds until it is removed.
    """

    base: int
    began: int
    end: int
    last: int
    extension: int
    flat: int = 0


class Profile(msgspec.Struct, frozen=True):
    """The map as it stands, for reading: the steps where something ends, and what holds between and before them.

    `a[i]` and `b[i]` hold from `ends[i - 1]` up to `ends[i]`. `tops[i]` is the highest U(e - 1) + e - 1 over the first
    `i + 1` ends e: where one more ramp beside it, growing by one a step, stands highest.
    """

    ends: list[int]
    a: list[int]
    b: list[int]
    tops: list[int]

    def at(self, step: int) -> int:
        """U at an absolute step that has not passed."""
        i = bisect_right(self.ends, step)
        return self.a[i] + step * self.b[i]


def _top(held: Held) -> int:
    """More than it holds at any step of its prediction."""
    return held.flat or held.base + held.end - held.began


class Anticipator:
    """The look-ahead map of one resource of one replica. Changes take constant time, a step in `advance` likewise.

    A ramp leaves by `remove` alone, never by the clock: one that outlives its prediction is extended by `EXTENSION` of
    it until it reaches its most, and stays at that.
    """

    def __init__(self) -> None:
        self.now = 0
        """Steps since the beginning."""
        self._a = 0
        self._b = 0
        self._changes: dict[int, tuple[int, int]] = {}
        self._soonest = _NEVER
        """No step before it changes anything."""
        self._held: dict[str, Held] = {}
        self._most = 0
        """The sum of what each holds at its highest: U is never above it."""
        self._profile: Profile | None = None

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, ramp_id: object) -> bool:
        return ramp_id in self._held

    def held(self) -> list[Held]:
        """What is on the map, each as it is now."""
        return [msgspec.structs.replace(held) for held in self._held.values()]

    @classmethod
    def restored(cls, now: int, held: Sequence[Held]) -> Anticipator:
        """The map that has these at this step. Their ids are not known: it is for looking at."""
        made = cls()
        made.now = now
        for order, one in enumerate(held):
            made._held[f"#{order}"] = one
            made._most += _top(one)
            x, y = made._share(one)
            made._put(now, x, y)
            made._put(one.end, -x, -y)
        return made

    # --- what changes it

    def add(self, ramp_id: str, ramp: Ramp) -> None:
        """It begins now. Raises ValueError when one of this id is held."""
        if ramp_id in self._held:
            raise ValueError(f"{ramp_id} is on the map already")
        steps = max(ramp.steps, 1)
        held = Held(
            base=ramp.base,
            began=self.now,
            end=self.now + steps,
            last=self.now + max(ramp.most - ramp.base, steps),
            extension=max(LEAST_EXTENSION, int(EXTENSION * steps)),
        )
        self._held[ramp_id] = held
        self._most += _top(held)
        self._put(self.now, held.base - held.began, 1)
        self._put(held.end, held.began - held.base, -1)

    def remove(self, ramp_id: str) -> None:
        """It has ended. Unknown ids are ignored."""
        held = self._held.pop(ramp_id, None)
        if held is not None:
            self._most -= _top(held)
            x, y = self._share(held)
            self._put(held.end, x, y)
            self._put(self.now, -x, -y)

    def extend(self, ramp_id: str, steps: int) -> None:
        """It is foreseen to go on for so many steps more. Raises KeyError when it is not held."""
        held = self._held[ramp_id]
        x, y = self._share(held)
        self._put(held.end, x, y)
        self._most -= _top(held)
        held.end += steps
        self._most += _top(held)
        self._put(held.end, -x, -y)

    def advance(self, steps: int) -> None:
        """So many steps have passed. Whoever has outlived its prediction by then is extended."""
        begun, self.now = self.now, self.now + steps
        if self.now < self._soonest:
            return
        passed: list[int] | range = range(begun + 1, self.now + 1)
        if steps > len(self._changes):
            passed = [step for step in self._changes if step <= self.now]
        ended = False
        for step in passed:
            if (change := self._changes.pop(step, None)) is not None:
                self._a += change[0]
                self._b += change[1]
                ended = True
        self._soonest = min(self._changes, default=_NEVER)
        if ended:
            self._profile = None
            for ramp_id, held in self._held.items():
                if held.end <= self.now:
                    self._outlived(ramp_id, held)

    def _outlived(self, ramp_id: str, held: Held) -> None:
        """Extend it as often as the steps that have passed ask for."""
        times = (self.now - held.end) // held.extension + 1
        if not held.flat and held.end < held.last:
            self.extend(ramp_id, min(times * held.extension, held.last - held.end))
        if held.end <= self.now:
            if not held.flat:
                self._most -= _top(held)
                held.flat = held.base + held.last - held.began
                self._most += held.flat
            self.extend(ramp_id, self.now + LEAST_EXTENSION - held.end)

    def _share(self, held: Held) -> tuple[int, int]:
        """What it adds to A and B while it lasts."""
        return (held.flat, 0) if held.flat else (held.base - held.began, 1)

    def _put(self, step: int, x: int, y: int) -> None:
        """From `step` on A is `x` and B is `y` more."""
        self._profile = None
        if step <= self.now:
            self._a += x
            self._b += y
            return
        if step < self._soonest:
            self._soonest = step
        was_x, was_y = self._changes.get(step, (0, 0))
        if x + was_x or y + was_y:
            self._changes[step] = (x + was_x, y + was_y)
        else:
            self._changes.pop(step, None)

    # --- what is foreseen

    @property
    def held_now(self) -> int:
        """U at this step."""
        return self._a + self.now * self._b

    def window(self, steps: int) -> list[int]:
        """U for this step and those after it, `steps` in all."""
        return list(self._levels(steps))

    def _levels(self, steps: int) -> Iterator[int]:
        a, b = self._a, self._b
        for step in range(self.now, self.now + steps):
            if (change := self._changes.get(step)) is not None:
                a, b = a + change[0], b + change[1]
            yield a + step * b

    def peak(self, limit: int) -> int:
        """The highest of the next `limit` steps, this one included; 0 when nothing is held."""
        profile = self._read()
        last = self.now + max(limit, 1) - 1
        ends = profile.ends[: bisect_right(profile.ends, last)]
        # Between ends U never falls, so it stands highest right before one, or at the last step.
        before = [profile.a[i] + (end - 1) * profile.b[i] for i, end in enumerate(ends)]
        return max(profile.at(last), *before) if before else profile.at(last)

    def takes(self, ramps: Sequence[Ramp], capacity: float) -> bool:
        """Whether these, begun now, would keep the sum within `capacity` at every step for as long as they last.

        Constant time but for a binary search; a number of ramps at once takes the number of ends times theirs.
        """
        if self._most + sum(ramp.base + max(ramp.steps, 1) for ramp in ramps) <= capacity:
            return True  # even if all stood highest together
        profile = self._read()
        if len(ramps) == 1:
            base, steps = ramps[0].base, max(ramps[0].steps, 1)
            last = self.now + steps - 1
            if profile.at(last) + base + steps - 1 > capacity:
                return False
            earlier = bisect_right(profile.ends, last)
            return not earlier or profile.tops[earlier - 1] + base - self.now <= capacity
        lasts = sorted((self.now + max(ramp.steps, 1) - 1, ramp.base) for ramp in ramps)
        over = [last for last, _ in lasts]
        # `bases[i]`: what is left of their bases once the first i have ended.
        bases = [*accumulate((base for _, base in reversed(lasts)), initial=0)][::-1]
        ends = [end - 1 for end in profile.ends if end <= over[-1]] if over else []
        for step in (*ends, *over):
            gone = bisect_right(over, step - 1)
            if profile.at(step) + bases[gone] + (len(lasts) - gone) * (step - self.now) > capacity:
                return False
        return True

    def _read(self) -> Profile:
        if self._profile is None:
            ends = sorted(self._changes)
            changes = [self._changes[end] for end in ends]
            a = [*accumulate((x for x, _ in changes), initial=self._a)]
            b = [*accumulate((y for _, y in changes), initial=self._b)]
            tops = accumulate((x + (end - 1) * (y + 1) for x, y, end in zip(a, b, ends, strict=False)), max)
            self._profile = Profile(ends, a, b, [*tops])
        return self._profile
