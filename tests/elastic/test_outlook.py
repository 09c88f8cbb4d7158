import numpy as np
import pytest

from foreserve.elastic.outlook import AHEAD, EVERY, SLACK, Outlook, hull
from foreserve.elastic.profile import Profile, Timing

PROFILE = Profile(sizes=(1, 10), lengths=(1,), seconds={"merge:8": ((0.01,), (0.1,)), "plain": ((0.02,), (0.2,))})
"""10 ms each, and 20 ms."""
PLANS = {"merge:8": 0.6, "plain": 0.8}


def outlook(rate: float, count: int = 400, utility: float = 1.0, has_s: float = 1.0) -> tuple[Outlook, float]:
    made = Outlook(Timing(PROFILE), 10)
    for at in range(count):
        made.came(at / rate, has_s, 1, utility, PLANS)
    return made, (count - 1) / rate


def test_the_hull_has_what_brings_most_first_and_leaves_out_what_is_below_it() -> None:
    assert hull([(1.0, 5.0), (2.0, 5.5), (3.0, 7.0)]) == [(5.0, 1.0), (1.0, 2.0)]
    assert hull([(1.0, 5.0), (2.0, 4.0)]) == [(5.0, 1.0)]
    assert hull([(1.0, 0.0)]) == []


def test_the_rate_is_that_of_late() -> None:
    made, now = outlook(50.0)
    assert made.rate(now) == pytest.approx(50.0, rel=0.1)
    assert made.rate(now + 100.0) < 1.0


def test_nothing_is_known_before_some_have_come() -> None:
    made, now = outlook(50.0, count=EVERY - 1)
    assert made.ahead(now) is None


def test_where_there_is_time_for_all_a_second_costs_nothing() -> None:
    made, now = outlook(20.0)  # 40 % of what plain can do
    ahead = made.ahead(now)
    assert ahead is not None
    assert ahead.pace(now) is None
    assert ahead.price(now) == 0
    early, later = ahead(np.array([now, now + 0.5]))
    assert early == pytest.approx(later)
    assert early == pytest.approx(0.8 * 20.0 * AHEAD, rel=0.1)


def test_the_price_of_a_second_is_that_of_the_step_the_load_is_on() -> None:
    made, now = outlook(75.0)  # between what plain can do and what the fastest can
    ahead = made.ahead(now)
    assert ahead is not None
    early, later = ahead(np.array([now, now + 0.01]))
    assert (early - later) / 0.01 == pytest.approx((0.8 - 0.6) / 0.01, rel=0.01)
    assert ahead.price(now) == pytest.approx((0.8 - 0.6) / 0.01, rel=0.01)
    assert ahead.pace(now) is not None
    crowded, now = outlook(300.0, utility=2.0)  # more than anything can do
    ahead = crowded.ahead(now)
    assert ahead is not None
    early, later = ahead(np.array([now, now + 0.01]))
    assert (early - later) / 0.01 == pytest.approx(2.0 * 0.6 / 0.01, rel=0.01)
    assert ahead.pace(now) == pytest.approx(2.0 * 0.6 / 0.01, rel=0.01)


def test_it_is_worth_ever_less_the_later_the_device_is_free() -> None:
    made, now = outlook(75.0)
    ahead = made.ahead(now)
    assert ahead is not None
    worth = ahead(np.linspace(now, now + 2 * (AHEAD + SLACK), 50))
    falls = np.diff(worth)
    assert (falls <= 1e-9).all()
    assert (np.diff(falls) <= 1e-9).all()  # concave


def test_what_is_worth_nothing_costs_nothing_and_what_has_no_time_is_not_foreseen() -> None:
    made, now = outlook(300.0, utility=0.0)
    ahead = made.ahead(now)
    assert ahead is not None
    assert ahead.pace(now) is None
    assert ahead(np.array([now])) == pytest.approx(0.0)
    hopeless, now = outlook(300.0, has_s=0.0)
    assert hopeless.ahead(now) is None


def test_those_who_wait_already_make_a_second_dearer() -> None:
    made, now = outlook(55.0)  # a little more than what plain can do, less than it can with the slack
    ahead = made.ahead(now)
    assert ahead is not None
    assert ahead.price(now) == 0
    beside = ahead.beside(30)
    assert beside.price(now) == pytest.approx((0.8 - 0.6) / 0.01, rel=0.01)
    assert beside.pace(now) is not None
