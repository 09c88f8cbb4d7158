"""Which token setting each waiting batch gets, so that they are together worth most by their deadlines.

Batches run one after the other in the order given. For each the planner takes a setting, or leaves it out. A state is
when the batches so far are done and what they are worth; one that is done no earlier and worth no more than another is
dropped. What is left is exact: with a single state for each pair of batch and setting it would not be, as a slower
setting that is worth more now can cost a later batch its deadline.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EXACT = 16
"""Batches that are planned exactly at the most; those after them are foreseen greedily."""

TAILS = 8
"""States from which the rest is foreseen, where it is greedy."""

Floats = NDArray[np.float64]


class Batch:
    """One batch, as the planner sees it: by when each of its requests should be done, and what settings bring.

    `seconds` has one time for each setting. `worth` `[settings, requests]` is what each request is worth under it by
    its deadline, and `late` `[requests]` which part of that is left after it. It begins no sooner than `earliest`.
    """

    def __init__(
        self,
        deadlines: Sequence[float],
        seconds: Sequence[float],
        worth: Floats,
        late: Sequence[float],
        earliest: float = -math.inf,
    ) -> None:
        due = np.asarray(deadlines, float)
        order = np.argsort(due, kind="stable")
        self.deadlines: Floats = due[order]
        self.seconds: Floats = np.asarray(seconds, float)
        ordered = worth[:, order]
        # Done after the deadlines of the first n: those n are late, the others are not.
        self.gains: Floats = _sums(ordered)
        np.subtract(self.gains[:, -1:], self.gains, out=self.gains)
        if any(late):
            self.gains += _sums(ordered * np.asarray(late, float)[order])
        self.earliest = earliest
        self._rows = np.arange(len(self.seconds))

    def stretched(self, times: float) -> Batch:
        """The same where everything takes so many times as long."""
        found = copy.copy(self)
        found.seconds = self.seconds * times
        return found

    def gain(self, done: Floats) -> Floats:
        """What it is worth if done at `done` `[..., settings]`, by setting. Done at its deadline is on time."""
        return self.gains[self._rows, np.searchsorted(self.deadlines, done, side="left")]


def _sums(values: Floats) -> Floats:
    """Of the first 0, 1, … of each row."""
    found = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=found[:, 1:])
    return found


class Plan(NamedTuple):
    """The setting of each batch, as a number, or `None` for one that is left out, and what all are then worth.

    `labels` is how many states were looked at, and `exact` how many of the batches were planned exactly. `total` has
    what comes after as well.
    """

    settings: tuple[int | None, ...]
    worth: float
    labels: int
    exact: int
    total: float


After = Callable[[Floats], Floats]
"""What is to come is worth, by when all is done `[...]`; never more for a later time."""


def nothing(done: Floats) -> Floats:
    """Where nothing is to come."""
    return np.zeros_like(done)


def plan(batches: Sequence[Batch], start: float, budget: int | None = None, after: After = nothing) -> Plan:
    """The plan that is worth most when the first may begin at `start`; among equals the one that is done first.

    Worth most is it together with what is `after` it, by when it is done.
    At most `EXACT` batches, and no more than `budget` states, are planned exactly. From there each batch in turn gets
    the setting worth most of those that leave all later ones time for their fastest.
    """
    times, worth = np.array([start]), np.zeros(1)
    backs: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    labels, at = 0, 0
    for at, batch in enumerate([*batches, None]):  # where it stopped is wanted
        if batch is None or at == EXACT:
            break
        count = len(batch.seconds)
        if budget is not None and labels + len(times) * (count + 1) > budget and at:
            break
        labels += len(times) * (count + 1)
        done = np.maximum(times, batch.earliest)[:, None] + batch.seconds
        every = np.concatenate([times, done.ravel()])
        value = np.concatenate([worth, (worth[:, None] + batch.gain(done)).ravel()])
        order = np.lexsort((-value, every))
        rising = value[order]
        best = np.maximum.accumulate(rising)
        kept = order[np.concatenate([[True], best[1:] > best[:-1]])]
        before = np.where(kept < len(times), kept, (kept - len(times)) // count)
        chosen = np.where(kept < len(times), -1, (kept - len(times)) % count)
        backs.append((before, chosen))
        times, worth = every[kept], value[kept]
    state, rest, tail, end = _foreseen(batches[at:], times, worth, after)
    settings: list[int | None] = []
    last = state
    for before, chosen in reversed(backs):
        settings.append(None if chosen[last] < 0 else int(chosen[last]))
        last = int(before[last])
    total = float(worth[state] + rest)
    return Plan((*reversed(settings), *tail), total, labels, at, total + end)


def _foreseen(
    rest: Sequence[Batch], times: Floats, worth: Floats, after: After
) -> tuple[int, float, tuple[int | None, ...], float]:
    """From which state the rest, greedily planned, brings most; what it brings, its settings, what is after it."""
    if not rest:
        ends = after(times)
        # The states rise in time and worth: among equals the first.
        best = int(np.argmax(worth + ends))
        return best, 0.0, (), float(ends[best])
    last = len(times) - 1
    # Of many states, evenly: the earliest, the one worth most, and some between.
    looked = np.unique(np.linspace(last, 0, TAILS).round().astype(int))[::-1]
    totals, settings, done = _greedy(rest, times[looked], after)
    ends = after(done)
    best = int(np.argmax(worth[looked] + totals + ends))
    tail = (None if each < 0 else int(each) for each in settings[best])
    return int(looked[best]), float(totals[best]), (*tail,), float(ends[best])


def _greedy(batches: Sequence[Batch], starts: Floats, after: After) -> tuple[Floats, NDArray[np.intp], Floats]:
    """From each start: what all are worth, their settings `[starts, batches]`, -1 where one is left out, and the end.

    Each has the setting worth most, with what is after it, that leaves later batches time for their fastest.
    """
    latest = np.inf
    leaves: list[float] = []
    for batch in reversed(batches):
        leaves.append(latest)
        if batch.deadlines[0] >= starts.min():  # else it is late, whatever is left to it
            latest = min(latest, float(batch.deadlines[0])) - float(batch.seconds.min())
    now, total = starts.copy(), np.zeros(len(starts))
    settings = np.full((len(starts), len(batches)), -1)
    rows = np.arange(len(starts))
    for at, (batch, most) in enumerate(zip(batches, reversed(leaves), strict=True)):
        done = np.maximum(now, batch.earliest)[:, None] + batch.seconds
        gains = batch.gain(done)
        fastest = batch.seconds == batch.seconds.min()
        fits = ((done <= most) | fastest) & (gains > 0)
        scores = np.where(fits, gains + after(done), -np.inf)
        best = scores.argmax(axis=1)
        runs = scores[rows, best] > after(now)
        settings[runs, at] = best[runs]
        now = np.where(runs, done[rows, best], now)
        total += np.where(runs, gains[rows, best], 0.0)
    return total, settings, now
