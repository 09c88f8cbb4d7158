from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np
import pytest

from foreserve.foresight import workload_rolling
from foreserve.foresight.workload import Floats, Forecaster, Places, Series
from foreserve.foresight.workload_naive import LastValue
from foreserve.foresight.workload_rolling import (
    DEAR,
    DEAR_FIRST,
    FIRST,
    FOLDS,
    LEAST_SCORED,
    REFIT_LEAST,
    Rolling,
    scored,
)
from tests.foresight.loads import series, walk


class Mean:
    """Learns the mean of what came."""

    learns: ClassVar[bool] = True
    fits: ClassVar[list[int]] = []

    def __init__(self, mean: float | None = None) -> None:
        self.mean = mean

    def fit(self, series: Series, steps: int) -> Forecaster:
        Mean.fits.append(len(series))
        return Mean(float(series.values.mean()))

    def forecast(self, series: Series, origins: Places, steps: int) -> Floats:
        assert self.mean is not None
        return np.full(len(origins), self.mean)


class Dear(Mean):
    dear: ClassVar[bool] = True


class Broken(Mean):
    def fit(self, series: Series, steps: int) -> Forecaster:
        raise RuntimeError("out of luck")


@pytest.fixture(autouse=True)
def _no_fits() -> None:
    Mean.fits.clear()


def test_what_is_made_at_once_is_what_is_made_window_by_window() -> None:
    given = walk(40)
    at_once, live = Rolling("last", LastValue(), 2), Rolling("last", LastValue(), 2)
    at_once.extend(given)
    for end in range(1, 41):
        live.extend(given.before(end))
    assert live.made == at_once.made
    assert live.made == {place + 2: given.values[place] for place in range(40)}


def test_only_so_many_forecasts_are_held() -> None:
    given = walk(1000)
    assert scored(given) == LEAST_SCORED
    rolling = Rolling("last", LastValue(), 2)
    for end in range(1, 1001):
        rolling.extend(given.before(end))
    assert len(rolling.made) <= 2 * LEAST_SCORED + 2
    assert np.isfinite(rolling.of(range(1000 - LEAST_SCORED, 1002))).all()
    assert np.isnan(rolling.of(range(1002, 1004))).all()


def test_forecasts_of_a_time_before_learning_are_made_of_what_had_come_by_then() -> None:
    given = series(np.arange(200.0))
    rolling = Rolling("mean", Mean(), 2)
    rolling.extend(given)
    assert not rolling.made, "nothing has been learned yet"
    assert rolling.due(given)
    rolling.take(rolling.learn(given), given)
    rolling.extend(given)
    begins = np.linspace(200 - LEAST_SCORED, 200, FOLDS + 1).astype(int)
    assert Mean.fits == [*begins]
    for begin, end in itertools.pairwise(begins):
        made = rolling.of(range(begin + 2, end + 2))
        assert made[:-1] == pytest.approx(given.values[:begin].mean()), (
            "of the mean as it was known at the fold's begin"
        )
    assert rolling.made[201] == pytest.approx(given.values.mean())
    assert not rolling.due(given)


def test_it_learns_anew_once_enough_has_come() -> None:
    given = walk(400)
    rolling = Rolling("mean", Mean(), 2)
    assert not rolling.due(given.before(FIRST - 1))
    learned_at = []
    for end in range(FIRST, 401):
        if rolling.due(given.before(end)):
            rolling.take(rolling.learn(given.before(end)), given.before(end))
            learned_at.append(end)
    assert learned_at[:2] == [FIRST, FIRST + REFIT_LEAST]
    assert len(learned_at) < 12


def test_one_whose_training_is_dear_learns_later_and_seldom() -> None:
    given = walk(DEAR_FIRST + 2 * DEAR * REFIT_LEAST)
    rolling = Rolling("dear", Dear(), 2)
    learned_at = []
    for end in range(FIRST, len(given) + 1):
        if rolling.due(given.before(end)):
            rolling.take(rolling.learn(given.before(end)), given.before(end))
            learned_at.append(end)
    assert learned_at[0] == DEAR_FIRST
    assert learned_at[1] == DEAR_FIRST + DEAR * REFIT_LEAST
    assert len(learned_at) == 2


def test_one_that_cannot_learn_is_asked_again_once_more_has_come(caplog: pytest.LogCaptureFixture) -> None:
    given = walk(100)
    rolling = Rolling("broken", Broken(), 2)
    learned = rolling.learn(given)
    assert (learned.forecaster, learned.why) == (None, "out of luck")
    assert "cannot learn" in caplog.text
    rolling.take(learned, given)
    assert not rolling.due(walk(101))
    assert rolling.due(walk(130))


def test_one_that_fails_to_tell_leaves_the_others_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(LastValue):
        def forecast(self, series: Series, origins: Places, steps: int) -> Floats:
            raise ZeroDivisionError

    rolling = Rolling("mine", Fails(), 2)
    rolling.extend(walk(10))
    assert not rolling.made
    assert "forecaster mine cannot tell" in caplog.text


def test_a_clock_that_was_set_back_takes_forecasts_with_it() -> None:
    rolling = Rolling("last", LastValue(), 2)
    rolling.extend(series(np.arange(50.0), first=100))
    rolling.extend(series(np.arange(20.0), first=100))
    assert max(rolling.made) == 121
    assert rolling.made[121] == 19.0
    assert workload_rolling.scored(walk(10)) == LEAST_SCORED
