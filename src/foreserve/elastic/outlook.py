"""What a second of the device is worth to requests that have not come yet.

A plan that knows only what waits spends all the time it has on accuracy, and those who come next find the device busy.
So the time at which a plan is done has a worth of its own: that of the requests expected from now on for a while, were
they served from then. As in a fluid, parts of requests count, and each takes its share of a pass: for every kind of
request the settings on the upper hull of worth over seconds are steps, and the steps that bring most a second are taken
first (the relaxed multiple-choice knapsack: Sinha and Zoltners, Operations Research 27, 1979). That is a concave
function of the time there is, and its slope the price of a second: nothing while there is time for the most accurate
setting of all, what the fastest setting brings a second where not even that serves everybody.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from foreserve.elastic.profile import Timing

Floats = NDArray[np.float64]

KEPT = 64
"""Requests that what is to come is taken to be like."""

EVERY = 16
"""Arrivals after which it is worked out anew what the next will be like."""

AHEAD = 4.0
"""It looks so many times as far ahead as requests have time on average."""

SLACK = 0.8
"""Those that come last may still be served so much later: the part of that time."""

MEMORY = 8.0
"""The rate is a mean over about so many times that."""


class Outlook:
    """The requests to come, by those that came: how many a second, and of what worth and length.

    `timing` tells what they take, in batches of up to `size`.
    """

    def __init__(self, timing: Timing, size: int) -> None:
        self._timing = timing
        self._size = size
        self._last: deque[tuple[int, float, tuple[tuple[str, float], ...]]] = deque(maxlen=KEPT)
        self._has_s = 0.0
        self._count = 0.0
        self._began: float | None = None
        self._at = 0.0
        self._news = 0
        self._hull: tuple[Floats, Floats] | None = None

    def came(self, now: float, has_s: float, length: int, utility: float, plans: Mapping[str, float]) -> None:
        """One more arrived, of so many tokens, that should be done within `has_s`."""
        if self._began is None:
            self._began, self._at, self._has_s = now, now, has_s
        self._has_s += (has_s - self._has_s) / KEPT
        self._count = self._count * self._kept(now) + 1.0
        self._at = now
        self._last.append((length, utility, (*plans.items(),)))
        self._news += 1
        if self._news >= EVERY:
            self._hull, self._news = None, 0

    def rate(self, now: float) -> float:
        """Arrivals a second; 0 until enough have come to tell."""
        if self._began is None or len(self._last) < EVERY:
            return 0.0
        window = self._window()
        seen = window * (1 - math.exp(-(now - self._began) / window))
        return self._count * self._kept(now) / max(seen, 1e-3)

    def ahead(self, now: float) -> Ahead | None:
        """What is to come, seen from now; `None` while nothing is known of it."""
        rate = self.rate(now)
        if rate * self._has_s <= 0:
            return None
        if self._hull is None:
            self._hull = self._made(rate)
        return Ahead(now + (AHEAD + SLACK) * self._has_s, rate * AHEAD * self._has_s, *self._hull)

    def _window(self) -> float:
        return max(1e-3, MEMORY * self._has_s)

    def _kept(self, now: float) -> float:
        return math.exp(-(now - self._at) / self._window())

    def _made(self, rate: float) -> tuple[Floats, Floats]:
        """Of one request, as they are on average: seconds that it gets, and what it is then worth."""
        steps: list[tuple[float, float]] = []
        for (length, utility, plans), count in Counter(self._last).items():
            # As many to a batch as come during a full one.
            full = min(self._timing.seconds(each, self._size, length) for each, _ in plans)
            size = min(self._size, max(1, round(rate * full)))
            points = [(self._timing.seconds(each, size, length) / size, utility * worth) for each, worth in plans]
            share = count / len(self._last)
            steps += [(slope, share * seconds) for slope, seconds in hull(points)]
        steps.sort(reverse=True)
        widths = np.array([seconds for _, seconds in steps])
        gains = widths * [slope for slope, _ in steps]
        return np.concatenate([[0.0], np.cumsum(widths)]), np.concatenate([[0.0], np.cumsum(gains)])


def hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The rising part of the upper hull of nothing and `(seconds, worth)`: each piece's slope and seconds, in order."""
    found: list[tuple[float, float]] = []
    at, worth = 0.0, 0.0
    while left := [each for each in points if each[1] > worth and each[0] > at]:
        best = max(left, key=lambda each: ((each[1] - worth) / (each[0] - at), each[0]))
        found.append(((best[1] - worth) / (best[0] - at), best[0] - at))
        at, worth = best
    return found


class Ahead:
    """What `count` requests are worth that come, by when the device is free for them; they can be served until `end`.

    `seconds` and `worth` are of one of them: what it is worth by the time that it gets.
    """

    def __init__(self, end: float, count: float, seconds: Floats, worth: Floats) -> None:
        self._end = end
        self._count = count
        self._each = (seconds, worth)
        self._seconds = seconds * count
        self._worth = worth * count

    def beside(self, waiting: int) -> Ahead:
        """The same with so many more, that are there already."""
        return Ahead(self._end, self._count + waiting, *self._each)

    def __call__(self, free: Floats) -> Floats:
        """By each of these times. After the end the most that a second can bring is lost with each."""
        left = self._end - free
        found: Floats = np.interp(left, self._seconds, self._worth)
        steepest = self._worth[1] / self._seconds[1] if len(self._worth) > 1 else 0.0
        return found + steepest * np.minimum(left, 0.0)

    def price(self, now: float) -> float:
        """What the last second until the end brings, which is lost if one is spent now."""
        at = int(np.searchsorted(self._seconds, self._end - now, side="right"))
        if at >= len(self._seconds):
            return 0.0
        return float((self._worth[at] - self._worth[at - 1]) / (self._seconds[at] - self._seconds[at - 1]))

    def pace(self, now: float) -> float | None:
        """What a second brings on average from now on; `None` where there is time for the best setting of all."""
        left = self._end - now
        if left >= self._seconds[-1]:
            return None
        return float(np.interp(left, self._seconds, self._worth)) / left
