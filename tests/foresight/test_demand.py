from __future__ import annotations

import numpy as np
import pytest

from foreserve.foresight import demand
from foreserve.foresight.demand import Demand
from foreserve.foresight.workload import Series
from foreserve.scaling import Window

AT = 60_000.0
"""Where a window of a minute begins."""


def made(at: float = AT, **words: object) -> Demand:
    return Demand(**{"window_s": 60.0, "at": at, "keep": 100, **words})  # type: ignore[arg-type]


def values(given: Demand, measure: str = "requests") -> list[float]:
    return given.series()[measure].values.tolist()


def window(at: float, **amounts: float) -> Window:
    return Window(at=at, window_s=60.0, amounts=amounts)


def test_what_is_foreseen_counts_where_a_request_came_until_it_has_ended() -> None:
    given = made()
    given.came("a", {"output_tokens": 100.0, "input_tokens": 7.0}, AT + 59.9)
    given.came("b", {"output_tokens": 50.0, "input_tokens": 3.0}, AT + 60.0)
    assert given.advance(AT + 120.0)
    assert values(given, "output_tokens") == [100.0, 50.0]
    assert [w.amounts["output_tokens"] for w in given.changed()] == [100.0, 50.0]
    given.ended("a", {"output_tokens": 400.0})
    assert values(given, "output_tokens") == [400.0, 50.0]
    assert values(given, "input_tokens") == [7.0, 3.0]
    assert given.changed() == [window(AT, requests=1.0, output_tokens=400.0, input_tokens=7.0)], "that one alone"
    assert given.changed() == []


def test_a_true_length_is_never_there_before_its_request_has_ended() -> None:
    one, other = made(), made()
    for given, truth in ((one, 5.0), (other, 5000.0)):
        given.came("a", {"output_tokens": 100.0}, AT + 1.0)
        given.came("b", {"output_tokens": 100.0}, AT + 2.0)
        given.ended("b", {"output_tokens": 90.0})
        given.advance(AT + 60.0)
        assert values(given, "output_tokens") == [190.0]
        given.ended("a", {"output_tokens": truth})
    assert values(one, "output_tokens") == [95.0]
    assert values(other, "output_tokens") == [5090.0]


def test_ends_of_what_is_unknown_or_ended_already_change_nothing() -> None:
    given = made()
    given.came("a", {"output_tokens": 10.0}, AT)
    given.ended("a", {})
    given.ended("a", {"output_tokens": 99.0})
    given.ended("never", {"output_tokens": 99.0})
    given.advance(AT + 60.0)
    assert values(given, "output_tokens") == [10.0]


def test_a_request_of_which_nothing_is_told_counts_as_one_of_late() -> None:
    given = made()
    given.came("a", {"output_tokens": 100.0}, AT)
    given.ended("a", {"output_tokens": 80.0, "seconds": 2.0})
    given.came("refused", {}, AT + 1.0)
    given.advance(AT + 60.0)
    assert (values(given), values(given, "output_tokens"), values(given, "seconds")) == ([2.0], [160.0], [4.0])


def test_hours_without_a_request_are_zero_and_those_without_a_server_unknown() -> None:
    given = made(before=[window(AT - 300.0, requests=4.0), window(AT - 240.0, requests=5.0)])
    given.advance(AT + 60.0)
    given.advance(AT + 120.0)
    assert np.array_equal(values(given), [4.0, 5.0, np.nan, np.nan, np.nan, 0.0, 0.0], equal_nan=True)
    assert given.known == 4
    assert given.series()["requests"].first == (AT - 300.0) / 60.0


def test_a_window_seen_in_part_is_known_if_that_is_most_of_it() -> None:
    late, early = made(AT + 45.0), made(AT + 20.0)
    for given in (late, early):
        given.came("a", {}, AT + 50.0)
        given.came("b", {}, AT + 55.0)
        given.advance(AT + 60.0)
        given.advance(AT + 120.0)
    assert values(late) == [0.0]
    assert values(early) == [pytest.approx(2.0 * 60.0 / 40.0), 0.0]


def test_the_last_window_is_kept_at_the_end_if_most_of_it_was_seen() -> None:
    for after, known in ((20.0, []), (40.0, [1.5])):
        given = made()
        given.came("a", {}, AT)
        given.stop(AT + after)
        assert [w.amounts["requests"] for w in given.changed()] == known


def test_windows_that_the_clock_leaps_over_are_unknown() -> None:
    given = made()
    given.came("a", {}, AT)
    given.advance(AT + 250.0)
    given.came("b", {}, AT + 299.0)
    given.advance(AT + 300.0)
    given.advance(AT + 360.0)
    found = values(given)
    assert np.isnan(found[1:4]).all()
    assert (found[0], found[4:]) == (1.0, [pytest.approx(1.2), 0.0]), "of the fifth most was seen"


def test_a_clock_set_far_ahead_and_back_leaves_what_was_known_before() -> None:
    given = made()
    given.came("a", {}, AT)
    given.advance(AT + 60.0)
    given.came("b", {}, AT + 1e9)
    assert given.series() == {}, "nothing of it is of use then"
    given.advance(AT + 70.0)
    given.came("c", {}, AT + 75.0)
    given.ended("b", {"output_tokens": 5.0})
    given.advance(AT + 120.0)
    assert values(given) == [pytest.approx(1.2)]
    assert len(given.changed()) == 1


def test_a_clock_set_back_a_little_loses_what_was_counted_later() -> None:
    given = made()
    for minute in range(5):
        given.came(f"m{minute}", {}, AT + 60.0 * minute)
    given.advance(AT + 300.0)
    assert given.advance(AT + 120.0)
    for minute in (3, 4):
        given.advance(AT + 60.0 * minute)
    assert values(given) == [1.0, 1.0, 0.0, 0.0]
    moved = made()
    moved.came("a", {}, AT + 60.0)
    moved.came("b", {}, AT + 59.0)
    moved.advance(AT + 120.0)
    assert values(moved) == [0.0, 2.0], "by less than a window it counts on"


def test_a_measure_of_which_windows_do_not_tell_is_unknown_there_unless_nothing_came() -> None:
    before = [window(AT - 180.0, requests=2.0), window(AT - 120.0, requests=0.0), window(AT - 60.0, requests=1.0)]
    given = made(before=before)
    given.came("a", {"seconds": 3.0}, AT)
    given.advance(AT + 60.0)
    assert given.series()["seconds"].values.tolist()[0] == 0.0
    assert given.series()["seconds"].first == AT / 60.0 - 2
    assert np.array_equal(values(given, "seconds"), [0.0, np.nan, 3.0], equal_nan=True)


def test_what_came_before_is_taken_up_where_it_fits() -> None:
    given = made(
        before=[
            window(AT - 60.0 * 101, requests=9.0),  # too long ago
            window(AT - 120.0, requests=1.0, output_tokens=10.0),
            Window(at=AT - 60.0, window_s=600.0, amounts={"requests": 9.0}),
            window(AT + 600.0, requests=9.0),  # a clock was wrong
        ]
    )
    assert np.array_equal(values(given), [1.0, np.nan], equal_nan=True)
    assert given.changed() == []
    found = given.series()["output_tokens"]
    assert (found.first, found.window_s, found.day) == (AT / 60.0 - 2, 60.0, 1440)


def test_everything_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "MOST_OPEN", 10)
    given = made(keep=50)
    for minute in range(500):
        given.came(f"r{minute}", {"output_tokens": 1.0}, AT + 60.0 * minute)
    given.advance(AT + 60.0 * 500)
    assert len(given._open) == 10
    assert isinstance(given.series()["requests"], Series)
    assert len(given.series()["requests"]) == 50
    assert len(given._columns["requests"]) < 80
    assert given.series()["requests"].first + 50 == AT / 60.0 + 500
    given.ended("r499", {"output_tokens": 7.0})
    assert values(given, "output_tokens")[-1] == 7.0


def test_recent_amounts_are_there_from_the_first_request_on_and_fade() -> None:
    given = made(AT + 10.0)
    assert given.recent(AT + 10.0) == {"requests": 0.0}
    given.came("a", {"output_tokens": 30.0}, AT + 11.0)
    assert given.recent(AT + 13.0) == pytest.approx({"requests": 1 / 3.0, "output_tokens": 10.0})
    for second in range(20, 80):
        given.came(f"s{second}", {"output_tokens": 30.0}, AT + second)
    assert given.recent(AT + 80.0)["requests"] == pytest.approx(1.0, rel=0.12)
    assert given.recent(AT + 200.0)["requests"] == 0.0


def test_of_late_is_since_the_clock_leapt() -> None:
    given = made()
    for second in range(60):
        given.came(f"a{second}", {}, AT + second)
    given.advance(AT + 3600.0)
    for second in range(12):
        given.came(f"b{second}", {}, AT + 3600.0 + second)
    assert given.recent(AT + 3612.0)["requests"] == pytest.approx(1.0)
