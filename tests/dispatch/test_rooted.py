from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve.core import Work
from foreserve.dispatch.rooted import EarliestRoot
from foreserve.errors import ConfigError
from foreserve.ports import Pick, Room

ROOM = Room(replica="a", free={"slots": 1.0}, capacity={"slots": 1.0}, running=0)


def work(id: str, **words: Any) -> Work:
    return Work(id=id, payload=None, cost=words.pop("cost", {"slots": 1.0}), **words)


def order(policy: EarliestRoot, now: float = 10.0) -> list[str]:
    found: list[str] = []
    while isinstance(pick := policy.pick([ROOM], now), Pick):
        found += pick.ids
    return found


def test_the_oldest_request_goes_first_and_of_it_the_deepest_stage():
    policy = EarliestRoot()
    for each in (
        work("new", arrival=5.0),
        work("old-1", arrival=6.0, parent="old", root_arrival=1.0, depth=1),
        work("old-3", arrival=7.0, parent="old", root_arrival=1.0, depth=3),
        work("middle-9", arrival=8.0, parent="middle", root_arrival=2.0, depth=9),
    ):
        policy.add(each, each.arrival)
    assert order(policy) == ["old-3", "old-1", "middle-9", "new"]


def test_deadlines_and_patience_stand_in_one_line():
    policy = EarliestRoot(patience_s=10.0)
    policy.add(work("patient", arrival=0.0), 0.0)
    policy.add(work("late", arrival=1.0, deadline=30.0), 1.0)
    policy.add(work("urgent", arrival=2.0, deadline=5.0), 2.0)
    pick = policy.pick([ROOM], 3.0)
    assert isinstance(pick, Pick)
    assert (pick.ids, pick.why) == (("urgent",), "due in 2.0 s, 0 steps deep; first of 3")
    assert order(policy) == ["patient", "late"]


def test_nobody_overtakes_who_fits_no_room():
    policy = EarliestRoot()
    policy.add(work("large", arrival=0.0, cost={"slots": 2.0}), 0.0)
    policy.add(work("small", arrival=1.0), 1.0)
    assert policy.pick([ROOM], 2.0) is None
    policy.remove("large")
    policy.remove("unknown")
    assert order(policy) == ["small"]
    assert policy.pick([ROOM], 2.0) is None


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans()), max_size=200),
)
def test_what_is_left_comes_in_order_whoever_was_removed(works: list[tuple[int, int, bool]]):
    policy = EarliestRoot()
    left = []
    for n, (root, depth, stays) in enumerate(works):
        policy.add(work(f"{n}", arrival=float(n), root_arrival=float(root), parent="p", depth=depth), float(n))
        if stays:
            left.append((root, -depth, n))
        else:
            policy.remove(f"{n}")
    assert order(policy) == [f"{n}" for _, _, n in sorted(left)]


def test_one_that_comes_again_stands_in_line_once():
    policy = EarliestRoot()
    policy.add(work("a", arrival=0.0), 0.0)
    assert order(policy) == ["a"]
    policy.add(work("a", arrival=0.0, attempt=1), 1.0)
    assert order(policy) == ["a"]


def test_options():
    with pytest.raises(ConfigError, match="`patience_s` is -1; it must be at least 0"):
        EarliestRoot(patience_s=-1)
