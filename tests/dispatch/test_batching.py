import asyncio

import pytest

from foreserve.core import OutcomeKind, Work
from foreserve.dispatch.batching import FirstCome, FixedBatches
from foreserve.errors import ConfigError
from foreserve.ports import Pick, Room, Wait
from foreserve.simulation.clock import run
from tests.dispatch.harness import House
from tests.dispatch.static_replica import STEP_S, StaticReplica


def work(request_id: str, arrival: float = 0.0, attempt: int = 0, **cost: float) -> Work:
    return Work(id=request_id, payload=None, cost=cost or {"slots": 1}, arrival=arrival, attempt=attempt)


def room(**free: float) -> Room:
    return Room(replica="r", free=free, capacity=free, running=0)


def test_first_come_gives_one_at_a_time_and_nobody_overtakes():
    policy = FirstCome()
    policy.add(work("large", slots=1, kv_tokens=500), 0)
    policy.add(work("small", slots=1, kv_tokens=5), 0)
    assert policy.pick([room(slots=4, kv_tokens=100)], 0) is None
    pick = policy.pick([room(slots=4, kv_tokens=600)], 0)
    assert isinstance(pick, Pick)
    assert pick.ids == ("large",)
    policy.remove("small")
    policy.remove("never added")
    assert policy.pick([room(slots=4)], 0) is None


def test_fixed_batches_take_the_longest_prefix_that_fits_and_go_when_no_more_can_fit():
    policy = FixedBatches(size=10, max_wait_s=60)
    for name in "abc":
        policy.add(work(name, slots=1, kv_tokens=40), 0)
    pick = policy.pick([room(slots=8, kv_tokens=50), room(slots=8, kv_tokens=100)], 0)
    assert isinstance(pick, Pick)
    assert pick.ids == ("a", "b")


def test_fixed_batches_wait_and_say_until_when():
    policy = FixedBatches(size=2, max_wait_s=3)
    policy.add(work("a", arrival=1.0), 1.0)
    assert policy.pick([room(slots=8)], 1.5) == Wait(until=4.0)
    pick = policy.pick([room(slots=8)], 4.0)
    assert isinstance(pick, Pick)
    assert pick.ids == ("a",)


def test_fixed_batches_halve_who_comes_back_and_do_not_mix_them_with_fresh_ones():
    policy = FixedBatches(size=8, max_wait_s=60)
    for number in range(4):
        policy.add(work(f"fresh{number}", arrival=0.5 + number), 9)
        policy.add(work(f"twice{number}", arrival=0.1 + number, attempt=2), 9)
    policy.add(work("often", arrival=0.0, attempt=9), 9)
    batches = [pick.ids for _ in range(4) if isinstance(pick := policy.pick([room(slots=8)], 99), Pick)]
    fresh = tuple(f"fresh{number}" for number in range(4))
    assert batches == [("often",), ("twice0", "twice1"), fresh, ("twice2", "twice3")]


def test_fixed_batches_lose_nothing_when_memory_runs_out():
    """Only one at a time has the memory that it needs."""

    async def main() -> None:
        house = House(policy=FixedBatches(size=64))
        replica = StaticReplica("r0", house, slots=64, kv_tokens=100)
        for number in range(70):
            house.tell(f"r{number}", "x" * 60, STEP_S, stall_s=1e4)
        await asyncio.sleep(950)
        assert replica.failures > 1
        assert {(o.kind, o.usage["letters"]) for o in house.outcomes} == {(OutcomeKind.DONE, 60)}
        assert len(house.outcomes) == 70

    run(main())


def test_fixed_batches_without_a_size_fill_the_slots():
    policy = FixedBatches(max_wait_s=60)
    for name in "abcd":
        policy.add(work(name), 0)
    pick = policy.pick([room(slots=3)], 0)
    assert isinstance(pick, Pick)
    assert pick.ids == ("a", "b", "c")


@pytest.mark.parametrize("policy", [FirstCome(), FixedBatches(size=1)])
def test_a_retry_goes_by_its_first_arrival(policy: FirstCome | FixedBatches):
    policy.add(work("later", arrival=5), 5)
    policy.add(work("last", arrival=6), 6)
    policy.add(work("again", arrival=1, attempt=1), 7)
    order = [pick.ids[0] for _ in range(3) if isinstance(pick := policy.pick([room(slots=1)], 9), Pick)]
    assert order == ["again", "later", "last"]


def test_bad_options_are_named():
    with pytest.raises(ConfigError, match="size"):
        FixedBatches(size=0)
    with pytest.raises(ConfigError, match="max_wait_s"):
        FixedBatches(max_wait_s=-1)
