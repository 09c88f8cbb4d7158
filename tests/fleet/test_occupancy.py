from __future__ import annotations

import pytest

from foreserve.core import EngineLoad, Forecast, Length, Ramp, Work
from foreserve.fleet.occupancy import STALE_S, Occupancy
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


HOLDS = {"kv_tokens": 10_000.0}


def foreseen(name: str, prompt: int, output: int) -> Work:
    length = Length(mean=output, p50=output, p80=output, p95=output, source="fast")
    forecast = Forecast(input_tokens=prompt, output=length, most_tokens=4000, seconds=1.0)
    ramp = Ramp(resource="kv_tokens", base=prompt, steps=output, most=prompt + 4000)
    cost = {"slots": 1.0, "kv_tokens": float(prompt + output)}
    return Work(id=name, payload=None, cost=cost, arrival=0.0, forecast=forecast, ramp=ramp)


def theirs(*works: Work, now: float = 0.0) -> Occupancy:
    """Of an engine that bounds its cache by itself."""
    occupancy = Occupancy({"slots": 64.0}, HOLDS)
    occupancy.start(works, now)
    return occupancy


def test_what_an_engine_bounds_by_itself_is_foreseen_and_limits_nothing() -> None:
    occupancy = theirs(foreseen("long", 1000, 512), foreseen("short", 200, 50))
    ahead = occupancy.room(0.0)[1]
    assert (ahead.peak(1), ahead.peak(60)) == (0.12, 0.1298)
    assert room(occupancy).takes([foreseen("vast", 10**6, 10**6)])
    assert room(occupancy).free == {"slots": 62.0}
    assert ahead.peak(50, [foreseen("more", 700, 10).ramp]) == pytest.approx(0.1927)  # type: ignore[list-item]
    assert ahead.above(0.1049, 60) == pytest.approx(60 / 60)
    assert ahead.above(0.12, 60) == pytest.approx(49 / 60), "all steps of both but the first"
    assert ahead.until(foreseen("big", 8900, 1).ramp) == 50  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
@pytest.mark.parametrize("answered", [(), ("a",), ("a", "b", "c")])
def test_every_account_is_restored_however_requests_end(order: str, answered: tuple[str, ...]) -> None:
    """Early, late, before and after the first token; and all at once when the replica is gone."""
    for cleared in (False, True):
        occupancy = theirs(*(foreseen(name, 100 * n, 10 * n) for n, name in enumerate("abc", 1)))
        occupancy.heard(EngineLoad(last_step_s=0.01), 0.0)
        assert (occupancy.tokens, occupancy.unread.tokens if occupancy.unread else 0) == (660, 600)
        if answered:
            occupancy.answered(answered, 0.5)
        if cleared:
            occupancy.clear()
        for n, name in enumerate(order):
            occupancy.end(name, 1.0 + n)
            occupancy.end(name, 1.0 + n)
        assert (occupancy.tokens, occupancy.unread, dict(occupancy.held)) == (0, None, {})
        free, ahead = occupancy.room(9.0)
        assert free == {"slots": 64.0}
        assert ahead.peak(10_000) == 0.0


def test_prompts_are_unread_until_their_first_token_or_that_of_one_given_later() -> None:
    occupancy = theirs(foreseen("a", 300, 10), foreseen("b", 200, 10), foreseen("c", 500, 10), now=1.0)
    unread = occupancy.unread
    assert unread is not None
    assert (unread.tokens, unread.first, unread.since, unread.count) == (1000, 300, 1.0, 3)
    occupancy.answered(["b"], 1.5)
    unread = occupancy.unread
    assert unread is not None
    assert (unread.tokens, unread.first, unread.since, unread.count) == (500, 500, 1.5, 1)
    assert occupancy.token_s == pytest.approx(0.5 / 500)
    occupancy.answered(["c", "a", "unknown"], 2.0)
    assert occupancy.unread is None


def test_what_is_cached_need_not_be_read_but_for_the_last_token() -> None:
    occupancy = Occupancy({"slots": 4.0}, HOLDS)
    occupancy.start([foreseen("a", 300, 10)], 0.0, cached=256)
    occupancy.start([foreseen("b", 300, 10)], 0.0, cached=4000)
    assert occupancy.unread is not None
    assert occupancy.unread.tokens == 44 + 1
    assert occupancy.tokens == 620, "what it holds is another matter"


def test_a_ramp_grows_from_its_first_token_on() -> None:
    occupancy = theirs(foreseen("a", 1000, 100))
    occupancy.heard(EngineLoad(last_step_s=0.01), 0.0)
    assert occupancy.room(1.0)[1].peak(1) <= 0.1 + 0.0032, "its step clock goes, and it waits to be read"
    occupancy.answered(["a"], 1.2)
    assert occupancy.room(1.2)[1].peak(1) == 0.1
    assert occupancy.room(1.7)[1].peak(1) == pytest.approx(0.105, abs=2e-4)


def test_answers_that_come_whole_grow_unseen() -> None:
    occupancy = theirs(foreseen("a", 1000, 2000))
    occupancy.heard(EngineLoad(last_step_s=0.01), 0.0)
    for tenth in range(1, 101):
        occupancy.room(tenth / 10)
    assert occupancy.room(10.0)[1].peak(1) > 0.16


def test_traffic_that_comes_past_us_is_counted_until_a_report_says_otherwise() -> None:
    occupancy = theirs(foreseen("a", 1000, 100))
    occupancy.heard(EngineLoad(kv_fraction=0.4, running=3, waiting=0), 0.0)
    ahead = occupancy.room(0.0)[1]
    assert ahead.peak(1) == pytest.approx(0.4)
    assert ahead.above(0.39, 10) == 1.0
    occupancy.end("a")
    assert occupancy.room(100.0)[1].peak(1) == pytest.approx(0.3), "silence makes nobody idle"
    occupancy.heard(EngineLoad(kv_fraction=0.0, running=0, waiting=0), 101.0)
    assert occupancy.room(101.0)[1].peak(100) == 0.0


def test_others_whose_share_is_not_told_hold_as_much_as_ours() -> None:
    occupancy = theirs(foreseen("a", 1000, 100), foreseen("b", 2000, 100))
    occupancy.heard(EngineLoad(running=4, waiting=0), 0.0)
    assert occupancy.room(0.0)[1].peak(1) == pytest.approx(0.6)
    occupancy.heard(EngineLoad(), 1.0)
    assert occupancy.room(1.0)[1].peak(1) == pytest.approx(0.3), "what is not told is not made up"


def test_a_cache_that_keeps_what_has_ended_is_no_load() -> None:
    occupancy = theirs(foreseen("a", 1000, 100))
    occupancy.heard(EngineLoad(kv_fraction=0.9, running=1, waiting=0), 0.0)
    assert occupancy.room(0.0)[1].peak(1) == 0.1


def test_shared_beginnings_are_held_once_while_reports_are_fresh() -> None:
    occupancy = theirs(foreseen("a", 1000, 100), foreseen("b", 1000, 100))
    occupancy.heard(EngineLoad(kv_fraction=0.11, running=1, waiting=1), 0.0)
    assert occupancy.room(0.0)[1].peak(1) == 0.2, "what has not begun will come"
    occupancy.answered(["a", "b"], 0.0)
    occupancy.heard(EngineLoad(kv_fraction=0.12, running=2, waiting=0), 1.0)
    assert occupancy.room(1.0)[1].peak(1) == pytest.approx(0.12)
    assert occupancy.room(1.0)[1].takes([work("x", 5000, 10).ramp])  # type: ignore[list-item]
    assert occupancy.room(1.1 + STALE_S)[1].peak(1) == 0.2


def test_a_server_that_tells_no_steps_is_timed_by_its_answers() -> None:
    occupancy = theirs(foreseen("a", 100, 101), foreseen("b", 100, 400))
    occupancy.answered(["a", "b"], 0.0)
    assert occupancy.step_s is None
    occupancy.end("a", 5.0, output_tokens=101.0)
    assert occupancy.step_s == pytest.approx(0.05)
    assert occupancy.room(6.0)[1].peak(1) == pytest.approx((100 + 120) / 10_000)
