from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve.simulation import fit

SECONDS = st.floats(0.0, 10.0)


@st.composite
def tables(draw: st.DrawFn) -> list[list[float]]:
    columns = draw(st.integers(1, 5))
    return draw(st.lists(st.lists(SECONDS, min_size=columns, max_size=columns), min_size=1, max_size=5))


@given(tables())
def test_what_was_smoothed_never_falls(table: list[list[float]]):
    found = fit.monotone(table)
    for row in (*found, *zip(*found, strict=True)):
        assert all(a <= b for a, b in itertools.pairwise(row))
    flat = [seconds for row in table for seconds in row]
    assert all(min(flat) - 1e-9 <= seconds <= max(flat) + 1e-9 for row in found for seconds in row)


def test_what_is_in_order_stays_as_it_is():
    table = [[1.0, 2.0], [1.5, 2.0], [3.0, 9.0]]
    assert fit.monotone(table) == table
    assert fit.moved(table, fit.monotone(table)) == 0.0


def test_neighbours_in_the_wrong_order_share_their_mean():
    assert fit.monotone([[1.0, 3.0, 2.0, 4.0]]) == [[1.0, 2.5, 2.5, 4.0]]


def test_missing_cells_follow_from_rows_times_columns():
    cells = {(row, column): 1.0 + row + 0.5 * row * column for row in (1, 2, 4) for column in (0, 10)}
    del cells[4, 10]
    table, missing = fit.filled(cells, [1, 2, 4], [0, 10])
    assert missing == [(4, 10)]
    assert table == [[2.0, pytest.approx(7.0)], [3.0, pytest.approx(13.0)], [5.0, pytest.approx(25.0)]]


def test_no_slope_is_found_in_what_does_not_grow():
    assert fit.product_slope({(1, 10): 0.5}, {1: 1.0}) == 0.0
    assert fit.product_slope({}, {1: 1.0}) == 0.0
    assert fit.context_slope([(1, 10, 1.0), (1, 20, 0.5)]) == 0.0
    assert fit.context_slope([(1, 10, 1.0)]) == 0.0


def test_context_adds_the_same_whoever_runs():
    points = [(n, c, 0.1 * n + 0.01 * n * c) for n in (1, 3) for c in (10, 20, 40)]
    assert fit.context_slope(points) == pytest.approx(0.01)


@pytest.mark.parametrize(("both", "share"), [(1.0, 0.0), (1.5, 0.5), (2.0, 1.0), (2.04, 1.0), (0.97, 0.0)])
def test_the_share_of_a_decode_that_is_added_lies_between_none_and_all(both: float, share: float):
    assert fit.share_added([(both, 1.0, 1.0)]) == (share, "")


@pytest.mark.parametrize("boths", [[2.5], [0.5], [1.2, 1.5, 1.9], [-3.3, 1.3, 1.5, 3.2]])
def test_a_share_that_is_noise_is_the_usual_one_with_a_note(boths: list[float]):
    share, note = fit.share_added([(both, 1.0, 1.0) for both in boths])
    assert share == 0.6
    assert "noise: 0.6 is assumed" in note


def test_one_stray_measurement_leaves_a_share_as_it_is():
    assert fit.share_added([(both, 1.0, 1.0) for both in [1.5] * 30 + [9.0]]) == (0.5, "")


def test_a_change_that_may_be_none_is_none_with_a_note():
    assert fit.added([0.004, 0.005, 0.006], 0.001) == (0.005, "")
    assert fit.added([0.0004, -0.0005], 0.001) == (0.0, "")
    assert fit.added([], 0.001) == (0.0, "")
    seconds, note = fit.added([-0.02, 0.005, 0.03], 0.001)
    assert seconds == 0.0
    assert "5.0 ms was measured" in note
    assert "noise: 0 is assumed" in note


def test_rows_that_were_never_seen_lie_on_straight_lines():
    cells = {(2, 0): 2.0, (4, 0): 3.0, (2, 10): 2.0}
    table, missing = fit.filled(cells, [1, 2, 3, 4, 8], [0, 10])
    assert [row[0] for row in table] == [1.5, 2.0, 2.5, 3.0, 5.0]
    assert len(missing) == 7
    assert fit.filled({(4, 0): 3.0}, [1, 4], [0])[0] == [[3.0], [3.0]]
