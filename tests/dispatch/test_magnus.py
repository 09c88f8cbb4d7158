"""The policy as a pure function of its calls, and its promises on the virtual clock."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreserve.core import Forecast, Length, Outcome, OutcomeKind, Work
from foreserve.dispatch.magnus import MOST_COMPARED, Magnus
from foreserve.errors import ConfigError
from foreserve.ports import Pick, Room, Wait
from foreserve.simulation.clock import run
from tests.dispatch.harness import House
from tests.dispatch.static_replica import STEP_S, StaticReplica


def forecast(inputs: int, outputs: float, most: int = 1000, least: float = 0.0) -> Forecast:
    length = Length(mean=outputs, p50=outputs, p80=outputs, p95=outputs, source="test")
    return Forecast(input_tokens=inputs, output=length, most_tokens=most, seconds=1.0, least_seconds=least)


def work(name: str, inputs: int = 10, outputs: float = 10, arrival: float = 0.0, **words: Any) -> Work:
    least = words.pop("least", 0.0)
    foreseen = forecast(inputs, outputs, least=least)
    return Work(id=name, payload=None, cost={"slots": 1.0}, arrival=arrival, forecast=foreseen, **words)


def room(slots: float = 8, kv: float = 10_000) -> Room:
    free = {"slots": slots, "kv_tokens": kv}
    return Room(replica="r", free=free, capacity=free, running=0)


def picked(policy: Magnus, now: float, at: Room | None = None) -> tuple[str, ...]:
    pick = policy.pick([at or room()], now)
    assert isinstance(pick, Pick), pick
    return pick.ids


def done(name: str, ended: float, outputs: int = 10, tenant: str = "default", attempt: int = 0) -> Outcome:
    usage = {"prompt_tokens": 10.0, "output_tokens": float(outputs)}
    return Outcome(
        id=name,
        service="s",
        kind=OutcomeKind.DONE,
        arrival=0.0,
        ended=ended,
        usage=usage,
        tenant=tenant,
        attempt=attempt,
    )


def test_requests_of_like_length_run_together():
    policy = Magnus()
    for number in range(3):
        policy.add(work(f"short{number}", outputs=10), 0.0)
        policy.add(work(f"long{number}", outputs=300), 0.0)
    batches = [set(picked(policy, 1.0)), set(picked(policy, 1.0))]
    assert sorted(map(sorted, batches)) == [["long0", "long1", "long2"], ["short0", "short1", "short2"]]
    assert policy.pick([room()], 1.0) is None


def test_a_batch_is_held_back_while_it_can_grow_and_starts_at_once_when_full():
    policy = Magnus(linger_s=2.0)
    policy.add(work("a", arrival=1.0), 1.0)
    assert policy.pick([room(slots=2)], 1.0) == Wait(until=3.0)
    policy.add(work("b", arrival=1.5), 1.5)
    assert set(picked(policy, 1.5, room(slots=2))) == {"a", "b"}
    policy.add(work("c", arrival=2.0), 2.0)
    assert picked(policy, 4.0, room(slots=2)) == ("c",)


def test_memory_bounds_a_batch_by_its_longest():
    policy = Magnus(phi=float("inf"), linger_s=0.0)
    for number in range(6):
        policy.add(work(f"r{number}", inputs=100, outputs=100), 0.0)
    assert len(picked(policy, 1.0, room(kv=650))) == 3
    assert len(picked(policy, 1.0, room(kv=650))) == 3


def test_the_longer_quantile_may_serve_memory():
    length = Length(mean=20, p50=10, p80=100, p95=400, source="test")
    for memory, rows in (("p50", 8), ("p80", 4), ("p95", 1)):
        policy = Magnus(memory=memory, linger_s=0.0)  # type: ignore[arg-type]
        for number in range(8):
            foreseen = Forecast(input_tokens=0, output=length, most_tokens=1000, seconds=1.0)
            policy.add(Work(id=f"r{number}", payload=None, cost={"slots": 1}, arrival=0.0, forecast=foreseen), 0.0)
        assert len(picked(policy, 1.0, room(kv=450))) == rows


def test_what_a_room_does_not_take_is_cut_to_what_it_takes_the_oldest_first():
    policy = Magnus(linger_s=0.0)
    for number in range(5):
        each = work(f"r{number}", arrival=-number)
        policy.add(Work(**{**{f: getattr(each, f) for f in each.__struct_fields__}, "cost": {"slots": 1, "x": 2}}), 0.0)
    tight = Room(replica="r", free={"slots": 8, "x": 5}, capacity={"slots": 8, "kv_tokens": 1000, "x": 5}, running=0)
    assert set(picked(policy, 1.0, tight)) == {"r4", "r3"}
    assert set(picked(policy, 1.0, tight)) == {"r2", "r1"}
    assert policy.pick([Room(replica="r", free={"slots": 8, "x": 1}, capacity={"slots": 8}, running=0)], 1.0) is None


def teach(policy: Magnus, shapes: list[tuple[int, int, float]]) -> None:
    """Batches of one that took so long, as the policy itself would see them."""
    for number, (inputs, outputs, seconds) in enumerate(shapes):
        policy.add(work(f"t{number}", inputs, outputs), 0.0)
        assert picked(policy, 1.0) == (f"t{number}",)
        policy.settled(done(f"t{number}", 1.0 + seconds))


def test_the_highest_response_ratio_goes_first():
    """(waited, expected) of (10, 20), (4, 5) and (1, 4): ratios 0.5, 0.8 and 0.25."""
    policy = Magnus(phi=0.0, linger_s=0.0, k=1)
    teach(policy, [(10, 400, 20.0), (10, 100, 5.0), (10, 20, 4.0)])
    for name, outputs, arrival in (("first", 400, 0.0), ("second", 100, 6.0), ("third", 20, 9.0)):
        policy.add(work(name, 10, outputs, arrival), arrival)
    pick = policy.pick([room()], 10.0)
    assert isinstance(pick, Pick)
    assert pick.ids == ("second",)
    assert pick.why.endswith("ratio 0.8 = 4.00 s waited / 5.00 s expected")
    assert [picked(policy, 10.0), picked(policy, 10.0)] == [("first",), ("third",)]


def test_the_oldest_batchs_turn_is_told():
    policy = Magnus(phi=0.0, linger_s=0.0, oldest_every=2)
    for number in range(4):
        policy.add(work(f"r{number}", arrival=number), number)
    picks = [policy.pick([room()], 9.0) for _ in range(4)]
    told = ["the oldest batch's turn: " in pick.why for pick in picks if isinstance(pick, Pick)]
    assert told == [False, True, False, True]


def test_first_come_goes_by_the_oldest_request():
    policy = Magnus(order="fcfs", linger_s=0.0)
    policy.add(work("long", outputs=900, arrival=1.0), 1.0)
    policy.add(work("short", outputs=1, arrival=2.0), 2.0)
    assert [picked(policy, 50.0), picked(policy, 50.0)] == [("long",), ("short",)]


def test_equal_ratios_go_by_age_and_utility_weighs():
    policy = Magnus(phi=0.0, linger_s=0.0)
    policy.add(work("a", arrival=1.0), 1.0)
    policy.add(work("b", arrival=1.0), 1.0)
    policy.add(work("dear", arrival=1.0, utility=3.0), 1.0)
    assert [picked(policy, 9.0)[0] for _ in range(3)] == ["dear", "a", "b"]


def test_a_fixed_size_is_an_ablation():
    policy = Magnus(adaptive=False, size=2, phi=float("inf"), linger_s=0.0)
    for number in range(5):
        policy.add(work(f"r{number}"), 0.0)
    assert sorted(len(picked(policy, 1.0)) for _ in range(3)) == [1, 2, 2]


def test_what_can_no_longer_meet_its_deadline_waits_until_nothing_else_does():
    policy = Magnus(linger_s=0.0)
    policy.add(work("late", arrival=0.0, deadline=5.0, least=2.0), 0.0)
    policy.add(work("early", arrival=1.0, deadline=9.0, least=2.0), 1.0)
    policy.add(work("free", arrival=1.0, outputs=900), 1.0)
    assert {picked(policy, 4.0), picked(policy, 4.0)} == {("early",), ("free",)}
    assert picked(policy, 4.0) == ("late",)
    policy.add(work("gone", arrival=0.0, deadline=1.0), 5.0)
    policy.remove("gone")
    assert policy.pick([room()], 9.0) is None


def test_a_flood_of_one_tenant_does_not_keep_another_waiting():
    policy = Magnus(linger_s=0.0, burst_tokens=100.0)
    for number in range(64):
        policy.add(work(f"f{number}", tenant="flood", arrival=0.0), 0.0)
    assert len(picked(policy, 1.0)) == 8
    policy.add(work("small", outputs=600, tenant="small", arrival=1.0), 1.0)
    assert len(picked(policy, 1.5)) == 8
    assert picked(policy, 1.6) == ("small",)


def test_without_forecasts_it_goes_by_the_room_that_is_asked_for():
    policy = Magnus(linger_s=0.0)
    for number in range(5):
        policy.add(Work(id=f"r{number}", payload=None, cost={"slots": 1, "kv_tokens": 300}, arrival=0.0), 0.0)
    assert len(picked(policy, 1.0, room(kv=1000))) == 3


def test_who_was_together_comes_back_in_halves_that_nobody_joins():
    policy = Magnus(linger_s=0.0)
    for number in range(5):
        policy.add(work(f"r{number}", arrival=number / 10), number / 10)
    assert len(picked(policy, 1.0)) == 5
    for number in range(5):
        policy.add(work(f"r{number}", arrival=number / 10, attempt=1), 2.0)
    policy.add(work("new", arrival=2.0), 2.0)
    batches = [picked(policy, 3.0) for _ in range(3)]
    assert sorted(map(len, batches)) == [1, 2, 3]
    assert ("new",) in batches


@pytest.mark.parametrize(("crowded", "plan"), [(1, {"most_tokens": 470}), (0, None)])
def test_who_comes_back_alone_since_memory_ran_out_is_capped_at_what_fits(crowded: int, plan: Any):
    policy = Magnus(linger_s=0.0)
    policy.add(work("r", inputs=30, outputs=100), 0.0)
    assert picked(policy, 1.0, room(kv=500)) == ("r",)
    policy.add(work("r", inputs=30, outputs=100, attempt=1, crowded=crowded), 2.0)
    pick = policy.pick([room(kv=500)], 3.0)
    assert isinstance(pick, Pick)
    assert pick.plan == plan


def test_an_answer_of_whose_prompt_nothing_is_known_is_not_capped():
    policy = Magnus(linger_s=0.0)
    again = Work(id="r", payload=None, cost={"slots": 1, "kv_tokens": 400}, arrival=0.0, attempt=1, crowded=1)
    policy.add(again, 0.0)
    pick = policy.pick([room(kv=500)], 1.0)
    assert isinstance(pick, Pick)
    assert pick.plan is None


def test_only_memory_that_ran_out_caps_and_not_a_lost_replica():
    async def main(lost: bool) -> Any:
        house = House(policy=Magnus(phi=float("inf")))
        replica = StaticReplica("r0", house, fails=lambda batch, step: not lost and batch == 1 and step == 3)
        for name in "ab":
            tale(house, name, 5, 20)
        await asyncio.sleep(0.3)
        if lost:
            house.dispatcher.detach(replica, "killed")
            replica = StaticReplica("r1", house)
        await asyncio.sleep(60)
        assert {(o.kind, o.usage["letters"]) for o in house.outcomes} == {(OutcomeKind.DONE, 20)}
        return replica.plans

    assert run(main(lost=False)) == [None, {"most_tokens": 993}, {"most_tokens": 993}]
    assert run(main(lost=True)) == [None, None]


def test_it_learns_how_long_its_batches_take():
    policy = Magnus(linger_s=0.0)
    policy.add(work("a", outputs=20), 0.0)
    policy.add(work("b", outputs=20), 0.0)
    picked(policy, 1.0)
    policy.settled(done("a", 3.0, 15))
    assert not policy.times.log
    policy.settled(done("b", 5.0, 25))
    (served,) = policy.times.log
    assert (served.batch.size, served.seconds, served.actual.output) == (2, 4.0, 25)


def test_a_batch_that_did_not_run_to_its_end_teaches_nothing():
    policy = Magnus(linger_s=0.0)
    for name in "ab":
        policy.add(work(name), 0.0)
    picked(policy, 1.0)
    cancelled = Outcome(id="a", service="s", kind=OutcomeKind.CANCELLED, arrival=0.0, ended=2.0)
    policy.settled(cancelled)
    policy.settled(done("b", 5.0))
    assert not policy.times.log


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"phi": -1}, "`phi` is -1"),
        ({"order": "lifo"}, "valid: hrrn, fcfs"),
        ({"memory": "p99"}, "valid: mean, p50, p80, p95"),
        ({"size": 4}, "adaptive"),
        ({"adaptive": False}, "adaptive"),
        ({"k": 0}, "`k` is 0"),
        ({"tenant_weights": {"a": 0}}, "above 0"),
    ],
)
def test_wrong_options_are_told_in_words(options: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        Magnus(**options)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([0.0, 3000.0, float("inf")]))
def test_whatever_comes_is_picked_once_and_fits(rng: random.Random, phi: float):
    """Adds, removals, returns and picks in any order: nothing is lost, doubled, or given no room."""
    policy = Magnus(phi=phi, linger_s=rng.choice([0.0, 0.5]), burst_tokens=rng.choice([0.0, 1e9]))
    waiting: dict[str, Work] = {}
    ran: dict[str, Work] = {}
    now = 0.0
    for number in range(rng.randrange(5, 80)):
        now += rng.random()
        match rng.randrange(5):
            case 0 | 1:
                deadline = now + rng.uniform(0, 20) if rng.random() < 0.3 else None
                inputs, outputs = rng.randrange(300), rng.randrange(1, 300)
                each = work(f"r{number}", inputs, outputs, now, tenant=rng.choice("abc"), deadline=deadline)
                waiting[each.id] = each
                policy.add(each, now)
            case 2 if waiting:
                gone = rng.choice(sorted(waiting))
                del waiting[gone]
                policy.remove(gone)
            case 3 if ran:
                for name in sorted(ran)[: rng.randrange(1, 4)]:
                    each = ran.pop(name)
                    again = {field: getattr(each, field) for field in each.__struct_fields__}
                    waiting[name] = Work(**{**again, "attempt": each.attempt + 1})
                    policy.add(waiting[name], now)
            case _:
                pick = policy.pick([room(kv=1000)], now)
                if isinstance(pick, Pick):
                    assert room(kv=1000).takes([waiting[name] for name in pick.ids])
                    for name in pick.ids:
                        ran[name] = waiting.pop(name)
    now += 10
    while isinstance(pick := policy.pick([room(kv=1000)], now), Pick):
        for name in pick.ids:
            del waiting[name]
    assert pick is None
    assert not waiting
    assert not policy._accounts


def tale(house: House, name: str, inputs: int, outputs: int, foreseen: float | None = None, **words: Any) -> None:
    house.tell(
        name, "x" * outputs, STEP_S, forecast=forecast(inputs, outputs if foreseen is None else foreseen), **words
    )


@pytest.mark.parametrize("phi", [0.0, 2000.0, float("inf")])
def test_with_memory_that_ends_at_any_step_every_request_still_ends_once(phi: float):
    async def main(seed: int) -> None:
        rng = random.Random(seed)
        house = House(policy=Magnus(phi=phi))
        chance = rng.choice([0.0, 0.02, 0.2])
        replica = StaticReplica("r0", house, kv_tokens=400, fails=lambda batch, step: rng.random() < chance)
        wanted = {}
        for number in range(30):
            await asyncio.sleep(rng.expovariate(2.0))
            wanted[f"r{number}"] = rng.randrange(1, 40)
            tale(house, f"r{number}", rng.randrange(60), wanted[f"r{number}"], foreseen=rng.randrange(1, 20))
        await asyncio.sleep(900)
        assert len(house.outcomes) == 30
        assert {outcome.id for outcome in house.outcomes} == set(wanted)
        for outcome in house.outcomes:
            # Memory can only take what a request that was alone with too little had left, or who failed too often.
            assert outcome.kind in (OutcomeKind.DONE, OutcomeKind.FAILED)
            if outcome.kind is OutcomeKind.DONE and outcome.finish == "stop":
                assert outcome.usage["letters"] == wanted[outcome.id]
        if chance == 0.0:
            assert all(outcome.kind is OutcomeKind.DONE for outcome in house.outcomes)
        assert replica.failures or chance == 0.0

    for seed in range(12):
        run(main(seed))


def test_predictions_that_are_too_short_cost_time_and_lose_nothing():
    async def main() -> None:
        house = House(policy=Magnus())
        replica = StaticReplica("r0", house, kv_tokens=200)
        for number in range(8):
            tale(house, f"r{number}", 5, 60, foreseen=5)
        await asyncio.sleep(900)
        assert replica.failures >= 1
        assert {(o.kind, o.usage["letters"]) for o in house.outcomes} == {(OutcomeKind.DONE, 60)}

    run(main())


def test_nobody_starves_though_shorter_ones_come_forever():
    """Twice what can be served comes, so that the queue only grows; one long one must start all the same."""

    async def main() -> None:
        house = House(policy=Magnus(phi=100.0, oldest_every=4))
        replica = StaticReplica("r0", house, slots=2)
        for number in range(20):
            tale(house, f"before{number}", 5, 4)
        tale(house, "long", 5, 300)
        for number in range(2000):
            tale(house, f"s{number}", 5, 4)
            await asyncio.sleep(0.1)
            if ("long",) in replica.batches:
                assert len(replica.batches) <= 4 * (10 + 1) + 1
                return
        raise AssertionError("it never ran")

    run(main())


@pytest.mark.parametrize("order", ["hrrn", "fcfs"])
@pytest.mark.parametrize("phi", [0.0, 3000.0])
def test_how_many_are_ahead_is_what_the_order_then_does(order: Any, phi: float):
    rng = random.Random(7)
    for _ in range(30):
        policy = Magnus(phi=phi, order=order, linger_s=0.0, oldest_every=1000)
        policy.add(work("seen"), 0.0)
        picked(policy, 0.0)
        for number in range(60):
            policy.add(work(f"r{number}", rng.randrange(100), rng.randrange(1, 200), number / 10), number / 10)
        new = work("new", rng.randrange(100), rng.randrange(1, 200), 7.0)
        told = policy.ahead(new, 7.0)
        policy.add(new, 7.0)
        before = 0
        while "new" not in (ids := picked(policy, 7.0)):
            before += len(ids)
        assert told == before


def test_a_flood_is_ahead_of_another_tenant_by_its_burst_and_a_batch_alone():
    policy = Magnus(phi=0.0, linger_s=0.0, burst_tokens=100.0)
    for number in range(200):
        policy.add(work(f"f{number}", tenant="flood"), 0.0)
    picked(policy, 1.0)
    assert policy.ahead(work("more", outputs=600, arrival=1.0, tenant="flood"), 1.0) == 199
    new = work("small", outputs=600, tenant="small", arrival=1.0)
    told = policy.ahead(new, 1.0)
    policy.add(new, 1.0)
    before = 0
    while picked(policy, 1.0) != ("small",):
        before += 1
    assert before <= told <= before + 8


def test_with_ten_thousand_batches_few_are_compared():
    policy = Magnus(phi=0.0, linger_s=0.0)
    policy.add(work("seen"), 0.0)
    picked(policy, 0.0)
    for number in range(10_000):
        policy.add(work(f"r{number}", arrival=number / 1000), number / 1000)
    assert len(policy._batches.some(MOST_COMPARED)) <= MOST_COMPARED
    assert policy.ahead(work("new", arrival=20.0), 20.0) == pytest.approx(10_000)


def test_room_for_the_longest_answer_is_heeded():
    policy = Magnus(phi=float("inf"), linger_s=0.0)
    for number in range(8):
        each = work(f"r{number}", inputs=10, outputs=10)
        policy.add(msgspec.structs.replace(each, cost={"slots": 1.0, "kv_tokens": 200.0 + number * 50}), 0.0)
    batch = picked(policy, 1.0, room(kv=1100))
    assert len(batch) * max(200 + int(name[1:]) * 50 for name in batch) <= 1100, "padded to the longest"


def test_tenants_that_share_an_account_take_part():
    policy = Magnus(phi=0.0, linger_s=0.0, burst_tokens=10.0)
    policy._tenants._most = 1
    for number in range(5):
        policy.add(work(f"a{number}", tenant="a"), 0.0)
    picked(policy, 1.0)
    policy.add(work("new", tenant="b", arrival=1.0), 1.0)
    picked(policy, 1.5)
    assert picked(policy, 1.6) == ("new",)
