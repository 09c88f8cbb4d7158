"""What is there of a service tells its stage and what comes next; returns are medians of a bounded number."""

from __future__ import annotations

import pytest

from foreserve.core import WeightsRef
from foreserve.fleet.stages import KEPT, Present, Returns, Stage, all_held, pays, stage
from foreserve.runtime.memory_messages import mark

ROWS = [
    # workers, wants, weights, context, stage, pays
    (1, True, True, True, "running", ()),
    (2, False, False, False, "running", ()),
    (0, True, True, True, "weights", ("a fork", "mapping the weights")),
    (0, True, True, False, "weights", ("an interpreter and its imports", "mapping the weights")),
    (0, True, False, True, "context", ("a fork", "reading the weights")),
    (0, True, False, False, "cold", ("an interpreter and its imports", "reading the weights")),
    (0, False, True, True, "context", ("a fork",)),
    (0, False, True, False, "cold", ("an interpreter and its imports",)),
]


@pytest.mark.parametrize(("workers", "wants", "weights", "context", "is_in", "pay"), ROWS)
def test_what_is_there_tells_the_stage(workers, wants, weights, context, is_in, pay):
    present = Present(workers=workers, wants=wants, weights=weights, context=context)
    assert (stage(present), pays(present)) == (is_in, pay)


def test_workers_whose_weights_are_not_on_their_device_are_a_stage_of_their_own():
    present = Present(workers=1, wants=True, weights=True, context=True, copies=False)
    assert (stage(present), pays(present)) == ("workers", ("copying the weights to their device",))
    assert stage(Present(workers=0, wants=True, weights=True, context=True, copies=False)) == "weights"


def test_weights_are_held_when_each_of_them_is():
    one, two = WeightsRef(name="a", source="/a"), WeightsRef(name="b", source="/b", kind="loader")
    assert all_held([one, two], {mark(one), mark(two), 7})
    assert not all_held([one, two], {mark(one), mark(WeightsRef(name="b", source="/b"))}), "of another kind"
    assert all_held([], set())


def test_returns_are_the_median_of_the_last():
    returns = Returns()
    assert returns.medians() == {}
    for _ in range(KEPT):
        returns.add(Stage.COLD, 100.0)
    for seconds in range(KEPT):
        returns.add(Stage.COLD, float(seconds))
    returns.add(Stage.CONTEXT, 2.5)
    assert list(returns.medians().items()) == [(Stage.CONTEXT, 2.5), (Stage.COLD, (KEPT - 1) / 2)]
