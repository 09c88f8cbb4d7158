"""What a profile's tables say between and beyond their points."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from foreserve.engines.profile import DecodeTable, PrefillTable
from foreserve.engines.simulated_cost import DecodeCost, Line, PrefillCost

CLOSE = pytest.approx


def test_a_line_is_straight_between_its_points_and_goes_on_beyond_them():
    line = Line([10, 20, 40], [1.0, 2.0, 6.0])
    assert [line.at(x) for x in (10, 15, 20, 30, 40, 50)] == [CLOSE(y) for y in (1.0, 1.5, 2.0, 4.0, 6.0, 8.0)]
    assert line.at(5) == CLOSE(0.5)
    assert line.at(0) == 0.0
    assert Line([10, 20], [1.0, 4.0]).at(0) == 0.0  # never negative
    assert Line([7], [0.5]).at(1000) == 0.5


def test_a_line_never_falls():
    line = Line([0, 10, 20, 30], [1.0, 3.0, 2.0, 2.5])
    assert [line.at(x) for x in (10, 20, 30, 90)] == [3.0, 3.0, 3.0, 3.0]


lines = st.builds(
    lambda points, start: Line([x for x, _ in points], [start + y for _, y in points]),
    st.lists(
        st.tuples(st.integers(0, 300), st.floats(0.0, 1.0)), min_size=1, max_size=5, unique_by=lambda point: point[0]
    ).map(sorted),
    st.floats(0.001, 0.1),
)


@given(lines, st.floats(0.0, 400.0), st.integers(1, 300))
def test_a_sum_in_closed_form_is_the_sum(line, x, steps):
    assert line.total(x, steps) == CLOSE(sum(line.at(x + i) for i in range(steps)), rel=1e-9, abs=1e-12)


@given(lines, st.floats(0.0, 400.0), st.integers(1, 300), st.floats(0.001, 0.999))
def test_the_steps_of_a_time_are_those_that_reach_it(line, x, most, share):
    assume(line.at(x) > 1e-9)  # of steps that take no time there may be any number
    seconds = line.total(x, most) * share
    steps = line.steps(x, seconds, most)
    assert 1 <= steps <= most
    assert line.total(x, steps) >= seconds * (1.0 - 1e-6)
    assert steps == 1 or line.total(x, steps - 1) < seconds * (1.0 + 1e-6)


@given(lines, st.floats(0.0, 400.0), st.integers(1, 300))
def test_whole_steps_are_whole(line, x, steps):
    assume(line.at(x) > 1e-9)  # of steps that take no time there may be any number
    assert line.steps(x, line.total(x, steps), 1000) == steps


def test_whole_steps_are_whole_where_the_last_is_far_longer_than_the_first():
    line = Line([257.997, 283.051], [0.0957007393441438, 3.103711397897333])
    assert line.at(0.001) * 1e5 < line.at(156.001)
    assert line.steps(0.001, line.total(0.001, 156), 1000) == 156


def test_prefill_is_bilinear_in_the_tokens_and_what_is_before_them():
    cost = PrefillCost(PrefillTable(tokens=[100, 200], before=[0, 1000], seconds=[[1.0, 2.0], [3.0, 6.0]]))
    assert cost.at(100, 0) == CLOSE(1.0)
    assert cost.at(150, 500) == CLOSE((1.5 + 4.5) / 2)
    assert cost.at(300, 1000) == CLOSE(10.0)
    assert cost.at(200, 2000) == CLOSE(9.0)
    assert cost.at(50, 0) == CLOSE(0.5)
    assert cost.at(50, 1000) == CLOSE(1.0)


def test_decode_is_bilinear_in_the_sequences_and_their_context():
    cost = DecodeCost(DecodeTable(sequences=[1, 5], context=[0, 100], seconds=[[1.0, 2.0], [5.0, 10.0]]))
    assert cost.line(1).at(50) == CLOSE(1.5)
    assert cost.line(3).at(50) == CLOSE((3.0 + 6.0) / 2)
    assert cost.line(9).at(200) == CLOSE(9.0 + 2 * 9.0)


@given(
    st.lists(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3), min_size=3, max_size=3),
    st.integers(1, 40),
    st.integers(0, 250),
)
def test_more_work_never_takes_less_time_whatever_was_measured(seconds, many, context):
    decode = DecodeCost(DecodeTable(sequences=[1, 4, 16], context=[10, 100, 300], seconds=seconds))
    prefill = PrefillCost(PrefillTable(tokens=[4, 8, 16], before=[0, 100, 300], seconds=seconds))
    slack = 1e-9
    assert decode.line(many).at(context) <= decode.line(many).at(context + 7) + slack
    assert decode.line(many).at(context) <= decode.line(many + 1).at(context) + slack
    assert prefill.at(many, context) <= prefill.at(many + 1, context) + slack
    part = min(many, 16)
    assert prefill.at(part, context) <= prefill.at(part, context + 50) + slack
