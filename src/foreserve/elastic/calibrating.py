"""How many states the planner may look at on this machine, so that a whole choice takes about a millisecond.

Some plans are made for one choice: with those who run along, and without. More states than a few hundred bring next to
nothing: with 125 in place of 2,000, utility was 0.05 % less on the loads of `benchmarks.elastic`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np

from foreserve.elastic.planner import EXACT, Batch, plan

BUDGETS = (125, 250, 500, 1000, 2000, 4000)
REPEATS = 5


def calibrated(clock: Callable[[], float], within_s: float = 3e-4) -> int:
    """The largest of `BUDGETS` with which planning a full queue takes no more than `within_s` by `clock`.

    Half of five plans may take longer: one that was interrupted says nothing. The least budget where none is so quick.
    """
    queue = _queue()
    found = BUDGETS[0]
    for budget in BUDGETS:
        passes = []
        for _ in range(REPEATS):
            began = clock()
            plan(queue, 0.0, budget)
            passes.append(clock() - began)
        if statistics.median(passes) > within_s:
            break
        found = budget
    return found


def _queue() -> list[Batch]:
    """As many batches as are planned exactly, of which no two are alike: they have the most states."""
    batches = []
    for at in range(EXACT):
        count = 1 + at * 7 % 32
        seconds = [(0.3 + count / 32) * each for each in (0.012, 0.015, 0.02, 0.026, 0.03)]
        deadlines = [0.015 * at + 0.02 * ((5 * each) % count) / count for each in range(count)]
        utility = np.array([0.3 + 2.7 * ((11 * each + at) % 17) / 17 for each in range(count)])
        worth = np.array([0.70, 0.74, 0.77, 0.79, 0.80])[:, None] * utility
        batches.append(Batch(deadlines, seconds, worth, [0.0] * count))
    return batches
