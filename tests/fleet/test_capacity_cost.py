from __future__ import annotations

import itertools

import msgspec
import pytest

from foreserve.fleet.capacity_cost import FEW, TOGETHER, CostState, RequestCost

nan, inf = float("nan"), float("inf")


def sizes(count: int) -> list[dict[str, float]]:
    cycle = itertools.cycle([(10.0, 500.0), (2000.0, 20.0), (300.0, 300.0), (50.0, 50.0)])
    return [{"input_tokens": i, "output_tokens": o} for i, o in itertools.islice(cycle, count)]


def taught(count: int, looks: bool = False) -> RequestCost:
    cost = RequestCost()
    for each in sizes(count):
        cost.ended(each, 0.5 + 0.001 * each["input_tokens"] + 0.02 * each["output_tokens"])
        if looks:
            cost.of({"output_tokens": 1.0})
    return cost


def test_what_a_request_costs_is_learned_by_measure():
    cost = taught(1000)
    for size, seconds in (((10.0, 500.0), 10.51), ((2000.0, 20.0), 2.9), ((100.0, 100.0), 2.6)):
        assert cost.of(dict(zip(("input_tokens", "output_tokens"), size, strict=True))) == pytest.approx(
            seconds, rel=0.1
        )


def test_nothing_is_told_of_few_or_of_what_was_never_seen():
    assert taught(FEW).of({"output_tokens": 100.0}) is None, "those of long ago count a little less than one"
    assert taught(FEW + 5).of({"output_tokens": 100.0}) is not None
    assert taught(FEW + 5).of({"frames": 3.0}) is None


def test_it_is_the_same_however_often_it_was_asked_on_the_way():
    for count in (FEW + 5, TOGETHER, 3 * TOGETHER + 7):
        asked, other = taught(count, looks=True), taught(count)
        for size in sizes(4):
            assert asked.of(size) == pytest.approx(other.of(size))


def test_a_time_that_is_none_is_left_out():
    cost = taught(100)
    known = cost.of(sizes(1)[0])
    for wrong in (nan, inf):
        cost.ended({"output_tokens": 10.0}, wrong)
        cost.ended({"output_tokens": wrong}, 1.0)
    assert cost.of(sizes(1)[0]) == known


def test_it_survives_a_restart_and_what_is_not_sound_does_not():
    cost, size = taught(200), {"input_tokens": 700.0, "output_tokens": 90.0}
    kept = msgspec.json.decode(msgspec.json.encode(cost.state()), type=CostState)
    assert RequestCost.restored(kept).of(size) == cost.of(size)
    for wrong in ({"took": [1.0]}, {"seconds": float("nan")}, {"squares": [[1.0]] * 3}):
        assert RequestCost.restored(msgspec.structs.replace(kept, **wrong)).of(size) is None
