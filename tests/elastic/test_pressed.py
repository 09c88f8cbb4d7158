import math

import pytest

from foreserve.core import Work
from foreserve.elastic.pressed import Cut, cut
from foreserve.elastic.profile import Profile, Timing

PROFILE = Profile(
    sizes=(1, 10),
    lengths=(1, 8),
    seconds={"merge:8": ((0.02, 0.1), (0.11, 0.5)), "plain": ((0.03, 0.2), (0.21, 1.0))},
    bytes={"plain": ((1e6, 1e6), (1e7, 1e7))},
)
PLANS = {"merge:8": 0.6, "plain": 0.8}


def work(name: str, has_s: float = 1.0, utility: float = 1.0, plans: dict[str, float] = PLANS) -> Work:
    return Work(id=name, payload=None, arrival=0.0, deadline=has_s, cost={}, utility=utility, plans=plans)


def chosen(
    *works: Work, pace: float = 1.0, price: float | None = None, size: int = 10, memory: float = math.inf
) -> Cut | None:
    price = pace if price is None else price
    return cut([(1, works)], lambda w: float(w.deadline or 0), Timing(PROFILE), 0.0, size, pace, price, memory)


def names(found: Cut | None) -> str:
    assert found is not None
    return "".join(each.id for each in found.works)


def test_with_cheap_seconds_all_run_under_the_best_and_with_dear_ones_under_the_fastest() -> None:
    crowd = [work(name) for name in "abcdefghij"]
    found = chosen(*crowd, pace=1.0)
    assert found is not None
    assert (names(found), found.setting) == ("abcdefghij", "plain")
    assert found.worth == pytest.approx(8.0)
    found = chosen(*crowd, pace=60.0)
    assert found is not None
    assert (names(found), found.setting) == ("abcdefghij", "merge:8")


def test_what_hardly_anybody_needs_is_not_saved() -> None:
    crowd = [work(name) for name in "abcdefghij"]
    found = chosen(*crowd, pace=60.0, price=5.0)
    assert found is not None
    assert (names(found), found.setting) == ("abcdefghij", "plain")
    hurried = [work(name, has_s=0.15) for name in "abcdefghij"]  # ten are in time under the fastest alone
    found = chosen(*hurried, pace=60.0, price=5.0)
    assert found is not None
    assert (names(found), found.setting) == ("abcdefghij", "merge:8")


def test_a_tight_one_is_let_go_where_it_would_keep_the_batch_small() -> None:
    calm = [work(name) for name in "bcdefghij"]
    assert names(chosen(work("a", has_s=0.025), *calm, pace=10.0)) == "bcdefghij"
    assert names(chosen(work("a", has_s=0.025, utility=99.0), *calm, pace=10.0)) == "a"


def test_the_cheap_do_not_run_where_the_dear_alone_bring_more() -> None:
    works = [work("a", utility=5.0), *(work(name, utility=0.05) for name in "bcdefghi")]
    assert names(chosen(*works, pace=20.0)) == "a"
    assert names(chosen(*works, pace=0.1)) == "abcdefghi"


def test_nobody_late_nobody_who_brings_less_than_the_seconds_and_nobody_at_all() -> None:
    assert chosen(work("a", has_s=0.01)) is None
    assert chosen(work("a"), pace=1e6) is None
    assert chosen() is None


def test_each_runs_under_a_setting_that_it_allows_and_in_memory() -> None:
    only = [work(name, plans={"plain": 0.8}) for name in "ab"]
    found = chosen(*only, *(work(name, plans={"merge:8": 0.1}) for name in "cdefg"))
    assert found is not None
    assert (names(found), found.setting) == ("ab", "plain")
    found = chosen(*(work(name) for name in "abcdefghij"), memory=5e6)
    assert found is not None
    assert found.setting == "merge:8"
    small = chosen(*(work(name, plans={"plain": 0.8}) for name in "abcdefghij"), memory=5e6)
    assert small is not None
    assert 1 <= len(small.works) < 10


def test_inputs_of_other_lengths_are_not_mixed_and_no_more_than_the_size() -> None:
    due = {"a": 1.0, "b": 1.0, "c": 9.0}
    waiting = [(1, [work("a"), work("b")]), (8, [work("c", has_s=9.0)])]
    found = cut(waiting, lambda w: due[w.id], Timing(PROFILE), 0.0, 10, 0.1, 0.1, math.inf)
    assert names(found) == "ab"
    assert len(names(chosen(*(work(name) for name in "abcdefghij"), size=4))) == 4


def test_of_many_utilities_some_levels_are_tried() -> None:
    works = [work(chr(97 + at), utility=0.1 + at) for at in range(9)]
    found = chosen(*works, pace=40.0)
    assert found is not None
    assert 1 <= len(found.works) < 9
    assert min(each.utility for each in found.works) > 0.1


def test_one_without_a_deadline_runs_along_when_its_patience_is_over() -> None:
    late = Work(id="z", payload=None, arrival=-9.0, deadline=None, cost={}, plans=PLANS)
    crowd = [work(name) for name in "abc"]

    def due(each: Work) -> float:
        return float(each.deadline or each.arrival + 1.0)

    found = cut([(1, [late, *crowd])], due, Timing(PROFILE), 0.0, 10, 1.0, 1.0, math.inf)
    assert names(found) == "abcz"
    found = cut([(1, [late])], due, Timing(PROFILE), 0.0, 10, 1.0, 1.0, math.inf)
    assert names(found) == "z"
