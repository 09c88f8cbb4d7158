"""How soon the next request comes, for clients that wait for their answers and for those that do not."""

from __future__ import annotations

import pytest

from foreserve.dispatch.arrivals import MOST_STATES, Arrivals


def test_a_lone_client_waits_for_nobody():
    """Its next request comes a millisecond after its answer, and still none while it waits."""
    made, now = Arrivals(0.005), 0.0
    for _ in range(30):
        made.came(now)
        made.left(now + 0.002)
        now += 0.003
    made.came(now)
    assert made.gap() > 0.02


def test_of_two_that_answer_each_other_the_second_is_expected_and_a_third_is_not():
    made, now = Arrivals(0.005), 0.0
    for _ in range(30):
        made.came(now)
        made.came(now + 0.001)
        made.left(now + 0.010)
        made.left(now + 0.010)
        now += 0.011
    made.came(now)
    assert made.gap() == pytest.approx(0.001, rel=0.5)
    made.came(now + 0.001)
    assert made.gap() > 0.05


def test_where_they_come_whoever_is_here_the_gap_is_theirs():
    made = Arrivals(1.0)
    for n in range(300):
        made.came(0.01 * n)
        if n >= 3:
            made.left(0.01 * n + 0.005)
    assert made.since + made.gap() == pytest.approx(3.0, abs=0.002)


def test_more_than_can_be_told_apart_are_one_state():
    made = Arrivals(1.0)
    for n in range(3 * MOST_STATES):
        made.came(0.01 * n)
    assert len(made._states) <= MOST_STATES
    for _ in range(4 * MOST_STATES):
        made.left(10.0)
    assert made.gap() > 0
