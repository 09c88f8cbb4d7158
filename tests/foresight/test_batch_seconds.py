"""Batch times by size: what was seen is told, what was not is never told to be quicker than a fixed part allows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foreserve.foresight.batch_seconds import MOST_SIZES, BatchSeconds


def learned(**sizes: float) -> BatchSeconds:
    made = BatchSeconds()
    for size, seconds in sizes.items():
        made.learn(int(size[1:]), seconds)
    return made


def test_nothing_is_known_before_the_first():
    made = BatchSeconds()
    assert (made.estimate(3), made.most(3), made.least(3)) == (None, None, None)
    assert made.saves(3)


def test_between_below_and_beyond_what_was_seen():
    made = learned(n2=2.0, n6=4.0)
    assert [made.estimate(size) for size in (1, 2, 4, 6, 12)] == [2.0, 2.0, 3.0, 4.0, 8.0]


@given(st.floats(0.001, 10), st.floats(0.0001, 1), st.sets(st.integers(1, 64), min_size=1), st.integers(1, 100))
def test_of_a_fixed_part_and_one_for_each_no_estimate_is_too_quick(
    fixed: float, each: float, sizes: set[int], size: int
):
    made = BatchSeconds()
    for known in sizes:
        made.learn(known, fixed + each * known)
    found = made.estimate(size)
    assert found is not None
    assert found >= (fixed + each * size) * (1 - 1e-9)


def test_what_hardly_any_exceeds_or_falls_below_follows_the_spread():
    made = BatchSeconds()
    for n in range(40):
        made.learn(4, 1.0 + 0.1 * (n % 2))
    most, least, mean = made.most(4), made.least(4), made.estimate(4)
    assert most is not None
    assert least is not None
    assert mean is not None
    assert least < 1.0 < mean < 1.1 < most


def test_whether_one_more_saves_anything():
    assert learned(n1=1.0, n2=1.2, n3=1.4).saves(2)
    assert not learned(n1=1.0, n2=2.0, n3=3.0).saves(2)
    assert learned(n1=1.0, n2=2.0).saves(2), "three together have not been seen"


def test_what_is_remembered_is_bounded():
    made = BatchSeconds()
    for size in range(1, 2 * MOST_SIZES):
        made.learn(size, float(size))
    assert len(made._means) == len(made._sizes) == MOST_SIZES
    assert made.estimate(1) == MOST_SIZES, "the smallest that is still known"
