import math
from typing import Any

import pytest

from foreserve.core import Outcome, OutcomeKind, Work
from foreserve.elastic.batching import Elastic
from foreserve.elastic.profile import Profile
from foreserve.errors import ConfigError
from foreserve.ports import Pick, Room, Wait

PROFILE = Profile(
    sizes=(1, 8),
    lengths=(16, 64),
    seconds={
        "merge:8": ((0.01, 0.02), (0.04, 0.08)),
        "plain": ((0.02, 0.04), (0.08, 0.16)),
        "prompts:4": ((0.03, 0.06), (0.12, 0.24)),
    },
    bytes={"prompts:4": ((2.0**21, 2.0**21), (2.0**23, 2.0**23))},
)
PLANS = {"merge:8": 0.7, "plain": 0.8, "prompts:4": 0.85}
ROOM = Room(replica="r", free={"slots": 64.0}, capacity={"slots": 64.0}, running=0)


def work(name: str, arrival: float = 0.0, has_s: float | None = 1.0, **words: Any) -> Work:
    given = {"cost": {"slots": 1.0, "tokens": 10.0}, "plans": PLANS, **words}
    return Work(id=name, payload=None, arrival=arrival, deadline=None if has_s is None else arrival + has_s, **given)


def policy(**words: Any) -> Elastic:
    return Elastic(PROFILE, **{"wait_s": 0.0, "fill": False, **words})


def fill(policy: Elastic, *works: Work) -> None:
    for each in works:
        policy.add(each, each.arrival)


def picked(policy: Elastic, now: float = 0.0, room: Room = ROOM) -> Pick:
    found = policy.pick([room], now)
    assert isinstance(found, Pick)
    return found


def ended(work_id: str, now: float, beside: tuple[str, ...] = (), kind: OutcomeKind = OutcomeKind.DONE) -> Outcome:
    return Outcome(id=work_id, service="s", kind=kind, arrival=0.0, ended=now, beside=beside)


def test_with_time_the_most_accurate_setting_runs_and_in_a_hurry_the_fastest() -> None:
    for has_s, setting in ((1.0, "prompts:4"), (0.025, "plain"), (0.015, "merge:8")):
        elastic = policy()
        fill(elastic, work("a", has_s=has_s))
        assert picked(elastic).plan == setting


def test_batches_that_wait_make_the_first_one_hurry() -> None:
    elastic = policy(size=8)
    crowd = [work(f"{batch}-{n}", has_s=0.2) for batch in range(3) for n in range(8)]
    fill(elastic, *crowd)
    assert picked(elastic).plan == "merge:8"  # 40 ms each of the three, where plain would take 80
    assert len(picked(elastic, 0.04).ids) == 8


@pytest.mark.parametrize(
    "other",
    [
        {"has_s": 2.0},
        {"utility": 2.0},
        {"cost": {"slots": 1.0, "tokens": 40.0}},
        {"plans": {"plain": 0.8}},
    ],
)
def test_who_is_unlike_runs_apart(other: dict[str, Any]) -> None:
    elastic = policy()
    fill(elastic, work("a"), work("b", **other), work("c"))
    assert {picked(elastic).ids, picked(elastic).ids} == {("a", "c"), ("b",)}


def test_who_is_alike_runs_together_under_what_all_allow() -> None:
    elastic = policy()
    fill(elastic, work("a"), work("b", has_s=1.1, plans={"plain": 0.6, "prompts:4": 0.9}))
    found = picked(elastic)
    assert found.ids == ("a", "b")
    assert found.plan == "prompts:4"


def test_a_task_without_prompts_does_not_take_them_from_another() -> None:
    elastic = policy()
    fill(elastic, work("a"), work("b", has_s=1.1, plans={"merge:8": 0.6, "plain": 0.9}))
    found = [picked(elastic) for _ in range(2)]
    assert [(each.ids, each.plan) for each in found] == [(("a",), "prompts:4"), (("b",), "plain")]


def test_who_comes_later_than_the_wait_begins_a_batch() -> None:
    elastic = policy(wait_s=0.02)
    fill(elastic, work("a"), work("b", arrival=0.019), work("c", arrival=0.021))
    assert picked(elastic, 0.03).ids == ("a", "b")


def test_a_batch_never_exceeds_its_size_or_the_slots() -> None:
    elastic = policy(size=5)
    fill(elastic, *(work(str(n)) for n in range(12)))
    assert len(picked(elastic).ids) == 5
    few = Room(replica="r", free={"slots": 3.0}, capacity={"slots": 3.0}, running=0)
    assert len(picked(elastic, room=few).ids) == 3


def test_the_earliest_deadline_goes_first() -> None:
    elastic = policy()
    fill(elastic, work("late", has_s=3.0), work("soon", has_s=0.5))
    assert picked(elastic).ids == ("soon",)


def test_what_can_no_longer_be_done_in_time_does_not_hold_up_the_rest() -> None:
    elastic = policy(wait_s=10.0, span=1.0)
    fill(elastic, *(work(f"late{n}", has_s=0.06) for n in range(4)), work("b", has_s=0.1))
    assert picked(elastic, 0.055).ids == ("b",)
    assert picked(elastic, 0.055).ids == ("late0",)  # the dispatcher has not ended it, and nothing else waits
    for n in range(1, 4):
        elastic.remove(f"late{n}")
    assert elastic.pick([ROOM], 0.055) is None


def test_a_batch_that_is_late_as_a_whole_runs_in_part() -> None:
    elastic = policy()
    fill(elastic, *(work(str(n), has_s=0.03) for n in range(8)))
    found = picked(elastic)
    assert found.plan == "merge:8"
    assert 1 < len(found.ids) < 8


def test_it_waits_for_another_that_is_expected_and_no_longer_than_the_deadline_allows() -> None:
    elastic = policy(wait_s=0.5)
    for n in range(30):  # every 5 ms one comes
        elastic.add(work(f"w{n}", arrival=0.005 * n, has_s=1.0), 0.005 * n)
    found = elastic.pick([ROOM], 0.145)
    assert isinstance(found, Wait)
    assert 0.145 < found.until <= 0.2
    late = policy(wait_s=0.5)
    late.add(work("a", has_s=0.011), 0.0)
    assert picked(late).ids == ("a",)


def test_who_is_alone_is_not_held_up() -> None:
    elastic = policy(wait_s=0.02)
    now = 0.0
    for n in range(20):
        elastic.add(work(str(n), arrival=now), now)
        found = elastic.pick([ROOM], now)
        if isinstance(found, Wait):
            now = found.until
            found = elastic.pick([ROOM], now)
        assert isinstance(found, Pick)
        now += 0.03
        elastic.settled(ended(str(n), now))
        now += 0.01
    elastic.add(work("last", arrival=now), now)
    assert isinstance(elastic.pick([ROOM], now), Pick)


def test_one_without_a_deadline_is_served_late_rather_than_never() -> None:
    elastic = policy(patience_s=0.5)
    fill(elastic, work("a", has_s=None))
    assert picked(elastic, 99.0).ids == ("a",)


def test_times_are_learned_once_for_each_batch() -> None:
    elastic = policy()
    fill(elastic, work("a"), work("b"))
    found = picked(elastic)
    assert len(found.ids) == 2
    expected = elastic.timing.seconds(found.plan, 2, 16)
    elastic.settled(ended("a", 2 * expected, ("b",)))
    elastic.settled(ended("b", 9 * expected, ("a",)))
    assert elastic.timing.guard == pytest.approx(2.0)


def test_what_did_not_run_to_its_end_teaches_nothing() -> None:
    elastic = policy()
    fill(elastic, work("a"))
    picked(elastic)
    elastic.settled(ended("a", 99.0, kind=OutcomeKind.EXPIRED))
    assert elastic.timing.guard == 1.0


def test_who_comes_back_runs_alone_under_the_fastest() -> None:
    elastic = policy()
    fill(elastic, work("a"), work("b"), work("again", attempt=1))
    found = picked(elastic)
    assert found.ids == ("again",)
    assert found.plan == "merge:8"


def test_settings_that_take_too_much_memory_are_not_used() -> None:
    elastic = policy(memory_mb=4.0)
    fill(elastic, *(work(str(n), has_s=9.0) for n in range(8)))
    assert picked(elastic).plan == "plain"
    fill(elastic, work("a", has_s=9.0))
    assert picked(elastic).plan == "prompts:4"


def test_nor_are_they_when_it_is_too_late_to_matter() -> None:
    elastic = policy(memory_mb=4.0, patience_s=0.5)
    fill(elastic, *(work(str(n), has_s=None) for n in range(8)))
    assert picked(elastic, now=5.0).plan == "plain"


def test_plans_that_were_never_measured_are_left_out() -> None:
    elastic = policy()
    fill(elastic, work("a", plans={"merge:8": 0.5, "merge:99": 0.9}))
    assert picked(elastic).plan == "merge:8"
    fill(elastic, work("b", plans={"merge:99": 0.9}))
    assert picked(elastic).ids == ("b",)


def test_whoever_leaves_is_not_picked() -> None:
    elastic = policy()
    fill(elastic, work("a"), work("b"), work("c", attempt=1))
    elastic.remove("a")
    elastic.remove("c")
    elastic.remove("nobody")
    assert picked(elastic).ids == ("b",)
    assert elastic.pick([ROOM], 0.0) is None


def test_the_same_calls_give_the_same_picks() -> None:
    def run() -> list[Pick | Wait | None]:
        elastic, found = policy(wait_s=0.01), []
        for n in range(40):
            now = n * 0.004
            elastic.add(work(str(n), now, has_s=0.1 + 0.1 * (n % 3), utility=1.0 + n % 2), now)
            found.append(elastic.pick([ROOM], now))
        return found

    assert run() == run()


@pytest.mark.parametrize(
    "words",
    [
        {"size": 0},
        {"wait_s": -1.0},
        {"span": math.nan},
        {"budget": 0},
        {"patience_s": 0.0},
        {"memory_mb": -2.0},
        {"utility_classes": (2.0, 1.0)},
    ],
)
def test_options_out_of_range_are_told(words: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(words))):
        Elastic(PROFILE, **words)


def test_others_run_along_where_the_plan_is_worth_no_less_for_it() -> None:
    elastic = policy(fill=True)
    fill(elastic, work("a"), work("b", has_s=2.0), work("c", has_s=4.0, utility=3.0))
    found = picked(elastic)
    assert set(found.ids) == {"a", "b", "c"}
    assert found.plan == "prompts:4"


def test_nobody_runs_along_who_would_lose_by_the_setting_or_make_others_late() -> None:
    elastic = policy(fill=True)
    fill(elastic, work("hurried", has_s=0.015), work("calm", has_s=5.0))
    assert picked(elastic).ids == ("hurried",)
    full = policy(fill=True)
    fill(full, work("soon", has_s=0.031), work("calm", has_s=5.0))
    found = picked(full)
    assert (found.ids, found.plan) == (("soon",), "prompts:4")  # two of them would take longer than it has


def crowded(**words: Any) -> Elastic:
    """After 400 requests at ten times what it can do, all of them gone."""
    elastic = policy(**words)
    for n in range(400):
        elastic.add(work(str(n), arrival=0.001 * n), 0.001 * n)
        elastic.remove(str(n))
    return elastic


def test_whoever_is_alone_under_load_leaves_time_for_those_who_come() -> None:
    for foresight, setting in ((False, "prompts:4"), (True, "merge:8")):
        elastic = crowded(foresight=foresight)
        elastic.add(work("a", arrival=0.4, utility=0.1), 0.4)
        assert picked(elastic, 0.4).plan == setting


def test_under_load_a_batch_is_cut_from_all_that_wait() -> None:
    elastic = crowded(size=8)
    for n in range(8):  # no two are alike
        elastic.add(work(f"w{n}", arrival=0.4, has_s=0.3 * 1.5**n, utility=3.0), 0.4)
    found = picked(elastic, 0.4)
    assert len(found.ids) == 8
    assert "a second brings" in found.why
    assert elastic.pick([ROOM], 0.4) is None


def test_a_budget_bounds_every_plan() -> None:
    elastic = policy(budget=1, fill=True)
    fill(elastic, *(work(str(n), has_s=0.2 + 0.3 * n) for n in range(12)))
    assert picked(elastic).ids


def test_whoever_has_no_deadline_gets_a_turn_under_lasting_overload() -> None:
    elastic, now, turns = policy(size=8, patience_s=0.5), 0.0, []
    patient = [work(f"patient-{n}", has_s=None, utility=0.1) for n in range(12)]
    fill(elastic, *patient)
    for step in range(100):
        for n in range(16):
            elastic.add(work(f"{step}-{n}", now, has_s=0.3, utility=3.0), now)
        found = picked(elastic, now)
        if any(each.startswith("patient") for each in found.ids):
            turns.append((step, len(found.ids)))
        now += PROFILE.seconds[found.plan][1][0]
    assert [count for _, count in turns] == [8, 4]
    first, second = (step for step, _ in turns)
    assert 0.5 <= first * 0.04 <= 0.5 + 9 * 0.12
    assert second - first == 8


def test_what_is_overdue_does_not_hide_what_can_still_be_in_time() -> None:
    elastic = policy(size=2, patience_s=0.1, wait_s=0.0)
    for n in range(80):  # forty batches, more than a plan looks at
        elastic.add(work(f"overdue-{n}", 0.001 * n, has_s=None), 0.001 * n)
    elastic.add(work("urgent", 0.5, has_s=0.05), 0.5)
    assert "urgent" in picked(elastic, 0.5).ids
