"""Which requests run next, and how, where there is not time for all: the batch that brings most.

Batches as they were formed are then too small: every pass costs something whatever its size, and what a tight deadline
keeps small lets the queue grow. So a batch is cut from everything that waits. Those of one length that allow a setting
go by their deadlines; from each of them on, as many are taken as are done before the first is due, once all of them and
once only those of more utility. Each such batch brings its worth less what its seconds would bring otherwise. Who is in
the batch is chosen so, by what a second brings on average: that keeps batches full. Under which of the settings that
are in time it then runs is chosen by what the next second would bring: where a faster setting would save time that
hardly anybody needs, it is not worth its loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foreserve.core import Work
from foreserve.elastic.forming import LATE_WORTH, PLANS
from foreserve.elastic.profile import Timing

MOST = 512
"""Requests that are looked at: those due first."""

LEVELS = 4
"""Utilities from which on requests are taken."""

CHARGED = 0.5
"""Of what a second brings on average, this share is charged. With all of it passes are left half empty for what is
dear, and with little the cheap crowd out the dear; 0.65 was worth 1 % less on the loads of `benchmarks.elastic`.
"""


class Cut(NamedTuple):
    """A batch that is to run, and what it is worth."""

    works: list[Work]
    setting: str
    length: int
    worth: float


def cut(
    waiting: Sequence[tuple[int, Sequence[Work]]],
    due: Callable[[Work], float],
    timing: Timing,
    now: float,
    size: int,
    pace: float,
    price: float,
    memory: float,
) -> Cut | None:
    """The best batch of at most `size`; `None` where none is done in time or brings more than its seconds.

    One without a deadline that has waited longer than its patience is never too late, and worth little.
    `waiting` are works with their length, as the profile counts it. `pace` is what a second brings otherwise, on
    average, and `price` what one more would. Settings that take more than `memory` bytes are used up to that size.
    """

    def overdue(work: Work) -> bool:
        return work.deadline is None and due(work) < now

    def until(work: Work) -> float:
        return math.inf if overdue(work) else due(work)

    best: tuple[float, Cut] | None = None
    lengths: dict[int, list[Work]] = {}
    for length, works in waiting:
        lengths.setdefault(length, []).extend(works)
    for length, works in lengths.items():
        first = sorted(works, key=until)[:MOST]
        dues = np.array([until(work) for work in first])
        utility = np.array([work.utility * (LATE_WORTH if overdue(work) else 1.0) for work in first])
        settings = dict.fromkeys(each for work in first for each in work.plans or PLANS)
        for setting in settings:
            most = size
            while most and timing.bytes(setting, most, length) > memory:
                most -= 1
            if not most:
                continue
            worth = utility * [(work.plans or PLANS).get(setting, 0.0) for work in first]
            seconds = timing.curve(setting, most, length)
            for least in _levels(utility):
                rows = np.flatnonzero((worth > 0) & (utility >= least))
                found = _densest(dues[rows], worth[rows], seconds, now, CHARGED * pace)
                if found is not None and (best is None or found[0] > best[0]):
                    score, start, count = found
                    chosen = rows[start : start + count]
                    taken = [first[at] for at in chosen]
                    best = (score, Cut(taken, setting, length, float(worth[chosen].sum())))
    return None if best is None else _repriced(best[1], timing, min(map(until, best[1].works)) - now, price, memory)


def _repriced(found: Cut, timing: Timing, has_s: float, price: float, memory: float) -> Cut:
    """The same requests under the setting that is worth most at this price, among those that all allow, in time."""
    count, best = len(found.works), (-np.inf, found)
    for setting in found.works[0].plans or PLANS:
        seconds = timing.seconds(setting, count, found.length)
        if seconds > has_s + 1e-9 or timing.bytes(setting, count, found.length) > memory:
            continue
        worths = [(work.plans or PLANS).get(setting, 0.0) * work.utility for work in found.works]
        if min(worths) > 0 and (left := sum(worths) - price * seconds) > best[0]:
            best = left, found._replace(setting=setting, worth=sum(worths))
    return best[1]


def _densest(
    dues: NDArray[np.float64], worth: NDArray[np.float64], seconds: NDArray[np.float64], now: float, pace: float
) -> tuple[float, int, int] | None:
    """What is left of the worth, where it begins, and how many there are."""
    starts = np.arange(len(dues))
    counts = np.minimum(np.searchsorted(seconds, dues - now + 1e-9, side="right"), len(dues) - starts)
    if not len(dues) or counts.max() < 1:
        return None
    sums = np.concatenate([[0.0], np.cumsum(worth)])
    taken = np.maximum(counts, 1)
    scores = np.where(counts > 0, sums[starts + taken] - sums[starts] - pace * seconds[taken - 1], -np.inf)
    at = int(scores.argmax())
    return None if scores[at] <= 0 else (float(scores[at]), at, int(counts[at]))


def _levels(utility: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.unique(utility)
    return found if len(found) <= LEVELS else np.quantile(utility, np.arange(LEVELS) / LEVELS)
