import itertools

from foreserve.elastic.calibrating import BUDGETS, _queue, calibrated
from foreserve.elastic.planner import plan


def test_the_largest_budget_that_is_quick_enough() -> None:
    """On a clock on which every plan takes as much longer as its budget is larger."""
    budgets = itertools.chain.from_iterable([each] * 10 for each in BUDGETS)
    at = [0.0]

    def clock() -> float:
        at[0] += next(budgets) * 1e-6 / 2
        return at[0]

    assert calibrated(clock, within_s=0.6e-3) == 1000


def test_where_none_is_quick_enough_it_is_the_least() -> None:
    ticks = itertools.count()
    assert calibrated(lambda: float(next(ticks))) == BUDGETS[0]


def test_what_is_planned_needs_more_states_than_any_budget() -> None:
    assert plan(_queue(), 0.0).labels > BUDGETS[-1]
