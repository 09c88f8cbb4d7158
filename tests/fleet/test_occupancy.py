from __future__ import annotations

import pytest

from foreserve.core import EngineLoad, Ramp, Work
from foreserve.fleet.occupancy import Occupancy
from foreserve.fleet.steps import StepClock
from foreserve.ports import Room

CAPACITY = {"slots": 8.0, "kv_tokens": 1000.0}


def work(name: str, base: int = 0, steps: int = 0, most: int | None = None, **cost: float) -> Work:
    ramp = Ramp(resource="kv_tokens", base=base, steps=steps, most=most or base + steps) if steps else None
    cost = {"slots": 1.0, "kv_tokens": 700.0, **cost}
    return Work(id=name, payload=None, cost=cost, arrival=0.0, ramp=ramp)


def room(occupancy: Occupancy, now: float = 0.0) -> Room:
    free, ahead = occupancy.room(now)
    return Room(replica="r", free=free, capacity=occupancy.capacity, running=len(occupancy.held), ahead=ahead)


def test_plain_costs_are_summed_and_return_to_the_capacity_exactly():
    occupancy = Occupancy({"slots": 3.0, "seconds": 1.0})
    works = [Work(id=str(i), payload=None, cost={"slots": 1.0, "seconds": 0.1}, arrival=0.0) for i in range(3)]
    occupancy.start(works, 0.0)
    assert occupancy.room(0.0)[0] == pytest.approx({"slots": 0.0, "seconds": 0.7})
    for each in works:
        occupancy.end(each.id)
        occupancy.end(each.id)
    assert occupancy.room(0.0)[0] == {"slots": 3.0, "seconds": 1.0}
    assert not occupancy.held


def test_ramps_share_what_they_do_not_need_at_the_same_time():
    occupancy = Occupancy(CAPACITY)
    occupancy.start([work("early", 400, 100)], 0.0)
    assert room(occupancy).free == {"slots": 7.0, "kv_tokens": 600.0}, "its cost of 700 is not set aside"
    # At its highest with the early one 499 + 499, after that 500 to 899 alone.
    assert room(occupancy).takes([work("late", 400, 500)])
    assert not room(occupancy).takes([work("late", 403, 500)])
    assert not room(occupancy).takes([work("a", 400, 100), work("b", 300, 100)])
    assert not room(occupancy).takes([work("flat")]), "what has no ramp is judged by its cost and what is free now"


def test_what_has_no_ramp_is_set_aside_for_those_that_have_one():
    occupancy = Occupancy(CAPACITY)
    occupancy.start([work("flat")], 0.0)
    occupancy.start([work("ramp", 100, 101)], 0.0)
    assert room(occupancy).free["kv_tokens"] == 200.0
    assert room(occupancy).takes([work("other", 102, 50)])
    assert not room(occupancy).takes([work("other", 103, 50)])
    occupancy.end("flat")
    assert room(occupancy).takes([work("other", 600, 101)])


def test_an_empty_replica_takes_one_work_whatever_is_foreseen():
    occupancy = Occupancy(CAPACITY)
    vast = work("vast", 900, 5000)
    assert room(occupancy).takes([vast])
    assert not room(occupancy).takes([vast, work("more", 1, 1)])
    occupancy.start([vast], 0.0)
    assert not room(occupancy).takes([work("more", 1, 100)])
    assert room(occupancy).takes([work("brief", 1, 20)]), "it is gone before the vast one is too much by itself"


def test_a_resource_that_is_not_limited_here_is_not_foreseen_either():
    occupancy = Occupancy({"slots": 2.0})
    occupancy.start([work("a", 10**9, 10)], 0.0)
    assert room(occupancy).takes([work("b", 10**9, 10)])
    assert room(occupancy).free == {"slots": 1.0}


def test_steps_pass_with_time_and_fractions_are_kept():
    occupancy = Occupancy(CAPACITY)
    occupancy.heard(EngineLoad(last_step_s=0.1), 0.0)
    occupancy.start([work("a", 100, 50, most=1000)], 10.0)
    occupancy.answered(["a"], 10.0)
    for tenth in range(1, 401):
        occupancy.room(10.0 + tenth / 100)
    assert room(occupancy, 14.0).free["kv_tokens"] == pytest.approx(1000 - 140, abs=1)
    held = 1000 - room(occupancy, 30.0).free["kv_tokens"]
    assert held == pytest.approx(300, abs=1), "it has outlived its 50 steps and still grows"
    occupancy.end("a")
    assert room(occupancy, 30.0).free == CAPACITY


def test_no_step_is_counted_while_their_length_is_unknown_and_all_are_once_it_is():
    occupancy = Occupancy(CAPACITY)
    occupancy.start([work("a", 100, 200)], 0.0)
    assert room(occupancy, 5.0).free["kv_tokens"] == 900.0
    occupancy.heard(EngineLoad(last_step_s=0.1), 5.0)
    assert room(occupancy, 6.0).free["kv_tokens"] == 840.0


def test_idle_time_is_no_steps():
    occupancy = Occupancy(CAPACITY)
    occupancy.heard(EngineLoad(last_step_s=0.1), 0.0)
    occupancy.start([work("a", 100, 20)], 100.0)
    assert room(occupancy, 100.0).free["kv_tokens"] == 900.0


def test_the_rate_is_smoothed_and_unknown_steps_change_nothing():
    clock = StepClock()
    for length in (0.1, None, 0.0, 0.1, 0.1):
        clock.heard(length)
    clock.begin(0.0)
    assert clock.passed(1.05) == 10
    assert clock.passed(1.1) == 1
    clock.heard(10.0)  # one long step
    assert clock.passed(2.1) == 8


def test_an_id_that_comes_again_is_held_once():
    occupancy = Occupancy(CAPACITY)
    occupancy.start([work("a", 100, 20)], 0.0)
    occupancy.start([work("a", 300, 20)], 0.0)
    assert room(occupancy).free == {"slots": 7.0, "kv_tokens": 700.0}
    occupancy.clear()
    assert room(occupancy).free == CAPACITY


def test_what_others_hold_is_no_room_of_ours_but_one_slot() -> None:
    occupancy = Occupancy({"slots": 4.0})
    occupancy.heard(EngineLoad(others=3), 0.0)
    assert occupancy.room(0.0)[0] == {"slots": 1.0}
    occupancy.heard(EngineLoad(others=9), 0.0)
    assert occupancy.room(0.0)[0] == {"slots": 1.0}
    occupancy.start([work("a", slots=1.0)], 0.0)
    assert occupancy.room(0.0)[0]["slots"] < 1.0
    occupancy.heard(EngineLoad(), 0.0)
    assert occupancy.room(0.0)[0] == {"slots": 3.0}
