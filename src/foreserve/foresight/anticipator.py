"""How much of one resource a replica will hold, step by step: each request is a ramp that grows by one a step.

The ramps of a replica together are U(a) = A + a * B at step a, where B counts the ramps and A sums their bases, each
less the step it began at. Both change only where a ramp ends, so the map is two differences at each of those steps:
what other maps keep in rings of the size of the longest answer is here a table as large as what is held, with its steps
in order. All numbers are integers, so nothing drifts.

Between two ends U never falls, so it stands highest right before an end or at the last step that is asked for: what is
foreseen is read from the ends alone, however many steps lie between them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

import msgspec

from foreserve.core import Ramp

EXTENSION = 0.2
"""Of its prediction, is what a ramp is extended by when it outlives that, again and again."""
LEAST_EXTENSION = 16
"""Steps; a short answer that goes on is not asked after every few steps."""


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


class _End:
    """What changes at one step: A and B, by those ramps that are foreseen to end there."""

    __slots__ = ("ids", "x", "y")

    def __init__(self) -> None:
        self.x = self.y = 0
        self.ids: dict[str, None] = {}


def _top(held: Held) -> int:
    """More than it holds at any step of its prediction."""
    return held.flat or held.base + held.end - held.began


class Anticipator:
    """The look-ahead map of one resource of one replica. A change takes a bisection of its ends, steps no time at all.

    A ramp leaves by `remove` alone, never by the clock: one that outlives its prediction is extended by `EXTENSION` of
    it until it reaches its most, and stays at that.
    """

    def __init__(self) -> None:
        self.now = 0
        """Steps since the beginning."""
        self._a = 0
        self._b = 0
        self._changes: dict[int, _End] = {}
        self._ends: list[int] = []
        """The steps of `_changes`, in order. None of them has passed."""
        self._order: list[tuple[int, int, int]] = []
        """The same steps with what A and B change by: for reading."""
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
            made._put(f"#{order}", one)
        return made

    # --- what changes it

    def add(self, ramp_id: str, ramp: Ramp) -> None:
        """It begins now. Raises ValueError when one of this id is held."""
        if ramp_id in self._held:
            raise ValueError(f"{ramp_id} is on the map already")
        steps = max(ramp.steps, 1)
        now = self.now
        self._put(
            ramp_id,
            Held(
                ramp.base,
                now,
                now + steps,
                now + max(ramp.most - ramp.base, steps),
                max(LEAST_EXTENSION, int(EXTENSION * steps)),
            ),
        )

    def remove(self, ramp_id: str) -> None:
        """It has ended. Unknown ids are ignored."""
        held = self._held.get(ramp_id)
        if held is not None:
            self._take(ramp_id, held)

    def begin_anew(self, ramp_id: str, ramp: Ramp) -> None:
        """It has not begun before now after all. Unknown ids are ignored."""
        held = self._held.get(ramp_id)
        if held is not None and held.began != self.now:
            self._take(ramp_id, held)
            self.add(ramp_id, ramp)

    def extend(self, ramp_id: str, steps: int) -> None:
        """It is foreseen to go on for so many steps more. Raises KeyError when it is not held."""
        held = self._held[ramp_id]
        self._take(ramp_id, held)
        held.end += steps
        self._put(ramp_id, held)

    def advance(self, steps: int) -> None:
        """So many steps have passed. Whoever has outlived its prediction by then is extended."""
        self.now += steps
        ends = self._ends
        if not ends or ends[0] > self.now:
            return
        passed = bisect_right(ends, self.now)
        outlived = [ramp_id for end in ends[:passed] for ramp_id in self._changes[end].ids]
        for ramp_id in outlived:
            held = self._held[ramp_id]
            self._take(ramp_id, held)
            self._outlive(held)
            self._put(ramp_id, held)

    def _outlive(self, held: Held) -> None:
        """Extend it as often as the steps that have passed ask for."""
        if not held.flat and held.end < held.last:
            times = (self.now - held.end) // held.extension + 1
            held.end = min(held.end + times * held.extension, held.last)
        if held.end <= self.now:
            if not held.flat:
                held.flat = held.base + held.last - held.began
            held.end = self.now + LEAST_EXTENSION

    def _put(self, ramp_id: str, held: Held) -> None:
        """It holds from now until its end, which has not passed."""
        self._held[ramp_id] = held
        x, y = (held.flat, 0) if held.flat else (held.base - held.began, 1)
        at = bisect_left(self._ends, held.end)
        end = self._changes.get(held.end)
        if end is None:
            end = self._changes[held.end] = _End()
            self._ends.insert(at, held.end)
            self._order.insert(at, (held.end, -x, -y))
        else:
            self._order[at] = (held.end, end.x - x, end.y - y)
        end.ids[ramp_id] = None
        end.x -= x
        end.y -= y
        self._a += x
        self._b += y
        self._most += _top(held)
        self._profile = None

    def _take(self, ramp_id: str, held: Held) -> None:
        """The opposite."""
        del self._held[ramp_id]
        x, y = (held.flat, 0) if held.flat else (held.base - held.began, 1)
        end = self._changes[held.end]
        del end.ids[ramp_id]
        end.x += x
        end.y += y
        at = bisect_left(self._ends, held.end)
        if end.ids:
            self._order[at] = (held.end, end.x, end.y)
        else:
            del self._changes[held.end], self._ends[at], self._order[at]
        self._a -= x
        self._b -= y
        self._most -= _top(held)
        self._profile = None

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
                a, b = a + change.x, b + change.y
            yield a + step * b

    def peak(self, limit: int, ramps: Sequence[Ramp] = ()) -> int:
        """The highest of the next `limit` steps, this one included, were these begun now; 0 when nothing is held."""
        now, a, b = self.now, self._a, self._b
        last = now + max(limit, 1) - 1
        brief: list[tuple[int, int, int]] = []
        for ramp in ramps:
            a += ramp.base - now
            b += 1
            if ramp.steps < limit:
                brief.append((now + max(ramp.steps, 1), now - ramp.base, -1))
        stops = self._order
        if brief:
            stops = sorted([*stops[: bisect_right(self._ends, last)], *brief])
        best = 0
        for stop, x, y in stops:
            if stop > last:
                break
            if (level := a + (stop - 1) * b) > best:
                best = level
            a += x
            b += y
        level = a + last * b
        return level if level > best else best

    def above(self, level: float, limit: int) -> int:
        """How many of the next `limit` steps, this one included, hold more than `level`."""
        found, begin, beyond = 0, self.now, self.now + max(limit, 1)
        a, b = self._a, self._b
        for end in (*self._ends[: bisect_left(self._ends, beyond)], beyond):
            # U rises by b a step from `begin` on.
            first = begin if a + begin * b > level else end if not b else max(begin, int((level - a) // b) + 1)
            found += max(0, end - first)
            if end < beyond:
                change = self._changes[end]
                a, b, begin = a + change.x, b + change.y, end
        return found

    def until(self, amount: float, capacity: float) -> int:
        """After how many steps `amount` is free for the first time; as many as the last end if it is not even then."""
        a, b = self._a, self._b
        if a + self.now * b + amount <= capacity:
            return 0
        for end in self._ends:
            change = self._changes[end]
            a += change.x
            b += change.y
            if a + end * b + amount <= capacity:
                return end - self.now
        return self._ends[-1] - self.now if self._ends else 0

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
            ends = self._ends
            changes = [self._changes[end] for end in ends]
            a = [*accumulate((change.x for change in changes), initial=self._a)]
            b = [*accumulate((change.y for change in changes), initial=self._b)]
            tops = accumulate((x + (end - 1) * (y + 1) for x, y, end in zip(a, b, ends, strict=False)), max)
            self._profile = Profile([*ends], a, b, [*tops])
        return self._profile
