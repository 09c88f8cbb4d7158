from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np
import pytest

from foreserve.foresight.workload import Floats, Forecaster, Places, Series
from foreserve.foresight.workload_auto import Foreseen, Outlook, span
from foreserve.foresight.workload_naive import LastValue, SeasonalNaive
from foreserve.foresight.workload_smoothing import Smoothing
from tests.foresight.loads import daily, series, walk

nan = np.nan


class Told:
    """Says what it was told to say: of the window at each place."""

    learns: ClassVar[bool] = False

    def __init__(self, amounts: Floats) -> None:
        self.amounts = amounts

    def fit(self, series: Series, steps: int) -> Forecaster:
        return self

    def forecast(self, series: Series, origins: Places, steps: int) -> Floats:
        return self.amounts[origins + steps]


def played(outlook: Outlook, given: Series, begin: int = 1) -> list[Foreseen | None]:
    return [outlook.update(given.before(end)) for end in range(begin, len(given) + 1)]


def test_who_was_nearest_is_asked_and_told_why_with_figures() -> None:
    outlook = Outlook({"last_value": LastValue(), "seasonal_naive": SeasonalNaive()}, 2, 0.8)
    found = outlook.update(daily(9))
    assert found is not None
    assert found.model == "seasonal_naive"
    assert found.index == 9 * 24 + 1
    assert found.why.startswith("seasonal naive: ")
    assert "% mean error two windows ahead over the last 3 days, last value " in found.why
    assert found.error["seasonal_naive"] < found.error["last_value"]
    assert found.low < found.expected < found.high


def test_figures_are_of_the_forecasts_as_they_were_made() -> None:
    given = walk(200, seed=2)
    outlook = Outlook({"last_value": LastValue()}, 2, 0.8)
    found = outlook.update(given)
    assert found is not None
    truth, made = given.values[-72:], given.values[-74:-2]
    assert found.error == {"last_value": pytest.approx(np.mean(np.abs(truth - made) / truth))}
    assert found.expected == given.values[-1]
    assert (
        found.why
        == f"last value: {100 * found.error['last_value']:.1f} % mean error two windows ahead over the last 3 days"
    )


def test_a_little_better_is_not_enough_to_take_over() -> None:
    rng = np.random.default_rng(0)
    came = np.full(400, 100.0)
    noise = rng.uniform(5.0, 15.0, 402)
    plain = {"a": Told(np.full(402, 100.0) + noise)}
    for share, taken in ((0.98, "a"), (0.9, "b")):
        outlook = Outlook({**plain, "b": Told(np.full(402, 100.0) + share * noise)}, 2, 0.8)
        found = outlook.update(series(came))
        assert found is not None
        assert found.model == taken


def test_two_that_are_as_good_do_not_take_turns() -> None:
    given = walk(600, seed=1)
    rng = np.random.default_rng(1)
    about = lambda: Told(np.append(given.values, [1.0, 1.0]) * np.exp(0.05 * rng.standard_normal(602)))  # noqa: E731
    outlook = Outlook({"a": about(), "b": about()}, 2, 0.8)
    asked = [found.model for found in played(outlook, given, 100) if found is not None]
    assert sum(one != other for one, other in itertools.pairwise(asked)) <= 3


def test_two_that_err_to_opposite_sides_are_asked_together() -> None:
    came = np.full(200, 100.0)
    outlook = Outlook({"high": Told(np.full(202, 110.0)), "low": Told(np.full(202, 91.0))}, 2, 0.8)
    found = outlook.update(series(came))
    assert found is not None
    assert found.model == "high + low"
    assert found.expected == pytest.approx(100.5)
    assert found.why.startswith("high with low: 0.5 % mean error")


def test_it_follows_a_load_that_changes_its_ways() -> None:
    regular = daily(10).values
    outlook = Outlook({"last_value": LastValue(), "seasonal_naive": SeasonalNaive()}, 1, 0.8)
    given = series(np.concatenate([regular, walk(24 * 6, seed=3).values]))
    found = played(outlook, given, 200)
    assert found[30] is not None
    assert found[30].model == "seasonal_naive"
    assert found[-1] is not None
    assert found[-1].model == "last_value"


def test_the_choice_is_made_of_the_past_alone() -> None:
    given = daily(9)
    other = series(np.concatenate([given.values[:150], given.values[150:][::-1] * 3.0]))
    make = lambda: Outlook({"last_value": LastValue(), "smoothing": Smoothing(), "day": SeasonalNaive()}, 2, 0.8)  # noqa: E731
    assert played(make(), given.before(150)) == played(make(), other.before(150))


def test_one_window_is_enough_to_begin_with() -> None:
    found = Outlook({"smoothing": Smoothing(), "last_value": LastValue()}, 2, 0.8).update(series([40.0], first=10))
    assert found is not None
    assert (found.index, found.expected, found.model) == (12, 40.0, "last_value")
    assert found.low < 40.0 < found.high
    assert found.why == "last value: too little has been seen to judge it"


@pytest.mark.parametrize("values", [[0.0] * 100, [nan] * 30 + [0.0] * 100, [0.0] * 99 + [5.0], [5.0] + [0.0] * 99])
def test_a_service_at_rest_breaks_nothing(values: list[float]) -> None:
    offered = {"last_value": LastValue(), "smoothing": Smoothing(), "seasonal_naive": SeasonalNaive()}
    for found in played(Outlook(offered, 2, 0.8), series(values), 40):
        assert found is not None
        assert 0.0 <= found.low <= found.expected <= found.high < np.inf


def test_where_nothing_is_known_nothing_is_foreseen() -> None:
    assert Outlook({"last_value": LastValue()}, 2, 0.8).update(series([nan, nan])) is None


def test_another_tells_while_the_chosen_one_cannot() -> None:
    amounts = np.full(202, 100.0)
    amounts[201] = nan
    outlook = Outlook({"good": Told(amounts), "last_value": LastValue()}, 2, 0.8)
    given = series(np.tile([90.0, 100.0, 110.0, 100.0], 50))
    assert [found.model for found in played(outlook, given, 199) if found is not None] == ["good", "last_value"]


def test_a_restart_chooses_as_if_there_had_been_none() -> None:
    given = daily(12)
    make = lambda: Outlook({"last_value": LastValue(), "seasonal_naive": SeasonalNaive()}, 2, 0.8)  # noqa: E731
    assert make().update(given) == played(make(), given)[-1]


@pytest.mark.parametrize("count", [2, 5, 9])
def test_no_error_is_told_of_a_handful_of_windows(count: int) -> None:
    given = series([1.0, 200.0] * 10)
    found = Outlook({"last_value": LastValue()}, 2, 0.8).update(given.before(count))
    assert found is not None
    assert found.why == "last value: too little has been seen to judge it"


def test_an_error_larger_than_the_load_is_told_in_words() -> None:
    outlook = Outlook({"last_value": LastValue(), "seasonal_naive": SeasonalNaive()}, 1, 0.8)
    found = outlook.update(series([1.0, 200.0] * 10))
    assert found is not None
    assert found.why == (
        "last value: over 100 % mean error one window ahead over the last 19 hours, seasonal naive over 100 %"
    )


def test_spans_in_words() -> None:
    assert [span(s) for s in (30.0, 600.0, 7200.0, 86_400.0, 3 * 86_400.0)] == [
        "30 seconds", "10 minutes", "2 hours", "24 hours", "3 days",
    ]  # fmt: skip
