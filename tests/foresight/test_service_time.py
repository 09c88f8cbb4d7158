from __future__ import annotations

import msgspec
import numpy as np
import pytest

from foreserve.foresight.service_time import BASE_S, FEW, INPUT_S, OUTPUT_S, PaceState, RequestTime


def requests(count: int, seed: int = 1) -> list[tuple[int, int]]:
    draw = np.random.default_rng(seed)
    return [(int(p), int(d)) for p, d in zip(draw.integers(5, 2000, count), draw.integers(1, 400, count), strict=True)]


def took(tokens: tuple[int, int], pace: float = 1.0) -> float:
    return pace * (0.1 + 0.0002 * tokens[0] + 0.011 * tokens[1])


def taught(count: int, pace: float = 1.0, seed: int = 1) -> RequestTime:
    time, noise = RequestTime(), np.random.default_rng(seed + 100)
    for each in requests(count, seed):
        time.learn(*each, took(each, pace) * float(noise.normal(1.0, 0.1)))
    return time


def test_it_begins_with_a_sane_guess_and_gives_up_no_deadline():
    time = RequestTime()
    assert time.seconds(1000, 100) == pytest.approx(BASE_S + 1000 * INPUT_S + 100 * OUTPUT_S)
    assert time.least_seconds(100) == 0.0


@pytest.mark.parametrize("pace", [0.01, 1.0, 10.0])
def test_it_learns_the_time_of_an_engine_of_any_speed(pace: float):
    time = taught(300, pace)
    for each in requests(50, seed=7):
        assert time.seconds(*each) == pytest.approx(took(each, pace), rel=0.15)


def test_it_follows_a_change_of_load():
    time = taught(400)
    for each in requests(600, seed=3):
        time.learn(*each, took(each, 3.0))
    for each in requests(20, seed=9):
        assert time.seconds(*each) == pytest.approx(took(each, 3.0), rel=0.2)


def test_the_least_is_an_unloaded_pace_and_stays_so_under_load():
    time = taught(200)
    unloaded = time.least_seconds(100)
    assert 0.5 <= unloaded <= took((0, 100))
    for each in requests(300, seed=4):
        time.learn(*each, took(each, 5.0))
    assert time.least_seconds(100) < 1.5 * unloaded
    for each in requests(300, seed=5):
        time.learn(*each, took(each, 0.2))
    assert time.least_seconds(100) < 0.4 * unloaded


def test_coefficients_stay_at_nought_or_above_and_more_tokens_never_take_less():
    time, draw = RequestTime(), np.random.default_rng(5)
    for _ in range(500):
        time.learn(int(draw.integers(1, 5000)), int(draw.integers(1, 500)), float(draw.exponential(3.0)) + 1e-4)
        figures = [time.seconds(p, d) for p, d in ((0, 1), (0, 400), (4000, 400))]
        assert 0 < figures[0] <= figures[1] <= figures[2] < 1e4


def test_one_kind_of_request_over_and_over_keeps_it_sound():
    time = RequestTime()
    for _ in range(20_000):
        time.learn(100, 50, 2.0)
    assert time.seconds(100, 50) == pytest.approx(2.0, rel=0.01)
    for each in requests(800):
        time.learn(*each, took(each))
    assert time.seconds(500, 100) == pytest.approx(took((500, 100)), rel=0.2)


@pytest.mark.parametrize(
    "odd", [(-1, 5, 1.0), (5, 0, 1.0), (5, 5, 0.0), (5, 5, float("nan")), (5, 5, 1e9), (5, 10**9, 1.0)]
)
def test_odd_figures_teach_nothing(odd: tuple[int, int, float]):
    time = RequestTime()
    time.learn(*odd)
    assert time.seen == 0
    assert time.seconds(10, 10) == RequestTime().seconds(10, 10)


def test_it_survives_a_restart():
    time = taught(FEW + 40)
    again = RequestTime.restored(msgspec.json.decode(msgspec.json.encode(time.state()), type=PaceState))
    assert again.seconds(300, 30) == time.seconds(300, 30)
    assert again.least_seconds(30) == time.least_seconds(30) > 0
    again.learn(10, 10, 1.0)
    time.learn(10, 10, 1.0)
    assert again.seconds(300, 30) == time.seconds(300, 30)
    broken = PaceState(known=[1.0], sums=[], seen=3, paces=[])
    assert RequestTime.restored(broken).seen == 0


def test_coefficients_are_those_of_least_squares():
    time, weights = RequestTime(), []
    for each in requests(60):
        weights.append((each, took(each), 1.0 / max(time.seconds(*each), took(each) / 4.0, 1e-4)))
        time.learn(*each, took(each))
    faded = 0.995 ** np.arange(len(weights))[::-1]
    x = np.array([[1.0, given / 100.0, made / 100.0] for (given, made), _, _ in weights])
    scale = np.array([weight for _, _, weight in weights])
    guess = np.array([BASE_S, 100.0 * INPUT_S, 100.0 * OUTPUT_S])
    first = np.diag(1.0 / (guess**2 * 10_000.0))
    known = (x * (scale**2 * faded)[:, None]).T @ x + first
    sums = (x * (scale**2 * faded)[:, None]).T @ np.array([seconds for _, seconds, _ in weights]) + first @ guess
    a, b, c = np.linalg.solve(known, sums)
    assert min(a, b, c) > 0
    assert time.seconds(300, 70) == pytest.approx(a + 3.0 * b + 0.7 * c, rel=1e-9)
