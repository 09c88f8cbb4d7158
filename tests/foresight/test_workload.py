"""What every forecaster must do, and the parts of the protocol."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest

from foreserve.errors import ConfigError
from foreserve.foresight import workload
from foreserve.foresight.workload import Forecaster, Series, filled, words
from foreserve.foresight.workload_boosting import Boosting
from foreserve.foresight.workload_naive import LastValue, SeasonalNaive
from foreserve.foresight.workload_recurrent import Recurrent
from foreserve.foresight.workload_smoothing import Smoothing
from tests.foresight.loads import daily, series, walk

Make = Callable[[], Forecaster]

QUICK = [LastValue, SeasonalNaive, Smoothing, Boosting]
EVERY = [pytest.param(make, id=make.__name__) for make in QUICK] + [
    pytest.param(Recurrent, id="Recurrent", marks=pytest.mark.slow)
]
nan = np.nan


def needs(make: Make) -> None:
    pytest.importorskip("sklearn" if make is Boosting else "torch" if make is Recurrent else "numpy")


def trained(make: Make, given: Series, steps: int) -> Forecaster:
    one = make()
    return one.fit(given, steps) if one.learns else one


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_forecast_is_told_by_what_came_up_to_its_origin_alone(make: Make, steps: int) -> None:
    needs(make)
    whole = daily(12)
    other = series(np.concatenate([whole.values[:200], 5.0 * whole.values[200:][::-1]]))
    origins = np.arange(150, 200)
    model = trained(make, whole.before(150), steps)
    again = trained(make, other.before(150), steps)
    assert np.array_equal(model.forecast(whole, origins, steps), again.forecast(other, origins, steps), equal_nan=True)


@pytest.mark.parametrize("make", EVERY)
def test_one_origin_at_a_time_says_what_all_at_once_do(make: Make) -> None:
    needs(make)
    given = daily(10)
    model = trained(make, given.before(200), 2)
    origins = np.arange(200, 220)
    at_once = model.forecast(given, origins, 2)
    fresh = model if model.learns else make()
    one_by_one = [fresh.forecast(given.before(int(o) + 1), np.array([o]), 2)[0] for o in origins]
    assert at_once == pytest.approx(one_by_one, rel=1e-9)


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize(
    "values",
    [
        pytest.param([0.0] * 300, id="nothing ever came"),
        pytest.param([7.0] * 300, id="constant"),
        pytest.param([0.0] * 150 + [9.0] * 150, id="began late"),
        pytest.param([9.0] * 150 + [0.0] * 150, id="went away"),
        pytest.param(([0.0] * 19 + [1.0]) * 15, id="sparse"),
        pytest.param([nan] * 60 + [5.0, 6.0] * 60 + [nan] * 60 + [5.0, 6.0] * 30, id="gaps"),
        pytest.param([3.0], id="one window"),
        pytest.param([nan] * 20 + [3.0], id="one known"),
        pytest.param([1e-9, 1e12] * 150, id="far apart"),
    ],
)
def test_nothing_breaks_on_odd_series(make: Make, values: list[float]) -> None:
    needs(make)
    given = series(values)
    one = make()
    if one.learns:
        if len(values) < 100 or np.nanmin(values) == np.nanmax(values) == 0.0 or make is Recurrent:
            with contextlib.suppress(ValueError):
                one.fit(given, 2)
            return
        one = one.fit(given, 2)
    found = one.forecast(given, np.arange(len(given)), 2)
    assert found.shape == (len(given),)
    assert not (found < 0.0).any()
    assert not np.isinf(found).any()
    assert np.isfinite(found[-1])
    if np.nanmin(values) == np.nanmax(values):
        assert found[-1] == pytest.approx(values[-1], rel=0.02)


@pytest.mark.parametrize("make", [LastValue, SeasonalNaive, Smoothing])
def test_where_nothing_is_known_nothing_is_told(make: Make) -> None:
    given = series([nan, nan, nan])
    assert np.isnan(make().forecast(given, np.arange(3), 2)).all()


def test_unknown_windows_are_as_the_last_known_one() -> None:
    found = filled(np.array([nan, 1.0, nan, nan, 4.0]))
    assert np.array_equal(found, [nan, 1.0, 1.0, 1.0, 4.0], equal_nan=True)
    assert len(filled(np.empty(0))) == 0


def test_the_last_value_is_the_last_that_is_known() -> None:
    assert LastValue().forecast(series([3.0, nan]), np.array([0, 1]), 2).tolist() == [3.0, 3.0]


def test_seasonal_naive_repeats_yesterday_then_also_last_week() -> None:
    naive = SeasonalNaive()
    values = np.arange(24.0 * 20)
    at = lambda origin: float(naive.forecast(series(values), np.array([origin]), 2)[0])  # noqa: E731
    assert at(10) == 10.0, "no yesterday yet: the last value"
    assert at(30) == 30 + 2 - 24
    assert at(400) == ((400 + 2 - 24) + (400 + 2 - 168)) / 2.0
    values[400 + 2 - 24] = nan
    assert at(400) == 400 + 2 - 168, "yesterday is not known: last week"


def test_seasonal_naive_more_than_a_day_ahead_goes_back_two() -> None:
    found = SeasonalNaive().forecast(series(np.arange(100.0)), np.array([80]), 30)
    assert found.tolist() == [80 + 30 - 48]


@pytest.mark.parametrize("make", [Smoothing, Boosting])
def test_a_load_with_a_day_is_foreseen_better_than_by_the_last_value(make: Make) -> None:
    needs(make)
    given = daily(14)
    origins = np.arange(240, len(given) - 2)
    truth = given.values[origins + 2]
    error = np.abs(trained(make, given.before(241), 2).forecast(given, origins, 2) - truth) / truth
    last = np.abs(given.values[origins] - truth) / truth
    assert error.mean() < 0.5 * last.mean()


def test_smoothing_goes_on_from_where_it_was_and_begins_anew_elsewhere() -> None:
    given = daily(6)
    origins = np.arange(len(given))
    whole = Smoothing().forecast(given, origins, 2)
    parts = Smoothing()
    first = parts.forecast(given.before(100), origins[:100], 2)
    assert np.array_equal(np.concatenate([first, parts.forecast(given, origins[100:], 2)]), whole)
    assert np.array_equal(parts.forecast(given, origins, 2), whole)


def test_boosting_learns_the_same_from_the_same() -> None:
    needs(Boosting)
    given = walk(300)
    origins = np.arange(250, 300)
    one, other = (Boosting().fit(given.before(250), 2).forecast(given, origins, 2) for _ in range(2))
    assert np.array_equal(one, other)


def test_names_are_told_and_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert words("seasonal_naive + last_value") == "seasonal naive with last value"
    monkeypatch.setattr("foreserve.foresight.workload_boosting.find_spec", lambda name: None)
    monkeypatch.setattr("foreserve.foresight.workload_recurrent.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs scikit-learn: pip install 'foreserve\[predict\]'"):
        Boosting()
    with pytest.raises(ConfigError, match=r"needs torch: pip install 'foreserve\[torch\]'"):
        Recurrent()
    found = workload.offered("auto", "here")
    assert {"last_value", "seasonal_naive", "smoothing"} <= found.keys()
    assert not {"gradient_boosting", "recurrent"} & found.keys()
    assert list(workload.offered("last_value", "here")) == ["last_value"]
    with pytest.raises(ConfigError, match=r"here: no forecaster is called 'last'.*valid: auto, "):
        workload.offered("last", "here")
