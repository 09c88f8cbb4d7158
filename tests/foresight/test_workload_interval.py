from __future__ import annotations

import itertools

import numpy as np
import pytest

from foreserve.foresight.workload_interval import LEAST, UNKNOWN, interval
from tests.foresight.loads import walk


@pytest.mark.parametrize("level", [0.7, 0.8, 0.9])
@pytest.mark.parametrize("given", ["noise", "walk", "growing"])
def test_each_bound_holds_as_often_as_it_says(level: float, given: str) -> None:
    rng = np.random.default_rng(3)
    came = {
        "noise": 100.0 * np.exp(0.3 * rng.standard_normal(2500)),
        "walk": walk(2500, seed=4).values,
        "growing": np.linspace(10.0, 1000.0, 2500) * np.exp(0.2 * rng.standard_normal(2500)),
    }[given]
    made = np.full(len(came), np.nan)
    made[2:] = came[:-2]
    held = []
    for now in range(200, 2490):
        # The last truth that is known is that of `now`; the forecast is of two windows later.
        low, high = interval(made[now + 2], made[now - 150 : now + 1], came[now - 150 : now + 1], level, 1.0)
        held.append((low <= came[now + 2], came[now + 2] <= high))
    for share in np.mean(held, axis=0):
        assert share == pytest.approx(level, abs=0.035)


def test_few_errors_are_not_trusted() -> None:
    made, came = np.full(LEAST - 1, 100.0), np.full(LEAST - 1, 100.0)
    assert interval(100.0, made, came, 0.8, 0.0) == (100.0 * (1 - UNKNOWN), 100.0 * (1 + UNKNOWN))
    assert interval(100.0, np.append(made, 100.0), np.append(came, 100.0), 0.8, 0.0) == (100.0, 100.0)


def test_errors_scale_with_what_is_foreseen() -> None:
    made, came = np.full(20, 100.0), np.linspace(90.0, 110.0, 20)
    low, high = interval(100.0, made, came, 0.8, 0.0)
    twice_low, twice_high = interval(200.0, made, came, 0.8, 0.0)
    assert (twice_low, twice_high) == pytest.approx((2 * low, 2 * high))
    assert 90.0 < low < 100.0 < high < 110.0


def test_a_higher_level_is_never_narrower_and_bounds_keep_their_sides() -> None:
    rng = np.random.default_rng(5)
    came = rng.exponential(10.0, 60)
    made = np.full(60, 25.0)  # always too much
    bounds = [interval(25.0, made, came, level, 1.0) for level in (0.5, 0.7, 0.9, 0.99)]
    for (low, high), (lower, higher) in itertools.pairwise(bounds):
        assert 0.0 <= lower <= low <= 25.0 <= high <= higher


def test_unknown_windows_say_nothing_and_zeros_do_no_harm() -> None:
    made, came = np.array([np.nan] * 30 + [0.0] * 30), np.array([5.0] * 30 + [0.0] * 30)
    assert interval(0.0, made, came, 0.8, 0.0) == (0.0, 0.0)
    assert interval(0.0, np.full(20, np.nan), np.full(20, 1.0), 0.8, 2.0) == (0.0, 1.0)
