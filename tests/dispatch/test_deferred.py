"""When a batch closes: by the policy alone with numbers from a page, and with a dispatcher on the virtual clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve.core import Outcome, OutcomeKind, Work
from foreserve.dispatch.deferred import Deferred
from foreserve.errors import ConfigError
from foreserve.ports import Pick, Room, Wait
from foreserve.simulation.clock import run
from tests.dispatch.harness import House, ScriptedReplica


def work(request_id: str, arrival: float = 0.0, **words: Any) -> Work:
    return Work(id=request_id, payload=None, cost={"slots": 1.0}, arrival=arrival, **words)


def room(slots: float = 4.0, name: str = "r") -> Room:
    return Room(replica=name, free={"slots": slots}, capacity={"slots": slots}, running=0)


def done(request_id: str, ended: float, kind: OutcomeKind = OutcomeKind.DONE) -> Outcome:
    return Outcome(id=request_id, service="s", kind=kind, arrival=0.0, ended=ended)


def taught(seconds: dict[int, float], **words: Any) -> Deferred:
    """A policy that knows how long batches take, and of no arrivals."""
    policy = Deferred(**words)
    for size, each in seconds.items():
        policy.seconds.learn(size, each)
    return policy


def picked(found: object) -> Pick:
    assert isinstance(found, Pick)
    return found


def test_a_full_batch_runs_at_once_and_the_rest_waits():
    policy = Deferred(wait_s=1.0)
    for name in "abcde":
        policy.add(work(name), 0.0)
    pick = picked(policy.pick([room(4.0)], 0.0))
    assert pick.ids == ("a", "b", "c", "d")
    assert pick.why == "batch of 4, waited 0.000 s; closed: full"
    assert isinstance(policy.pick([room(4.0)], 0.0), Wait)


def test_the_first_waits_no_longer_than_it_may():
    policy = Deferred(wait_s=1.0)
    policy.add(work("a", 0.0), 0.0)
    assert policy.pick([room()], 0.0) == Wait(until=1.0)
    names = [f"b{n}" for n in range(18)]
    for n, name in enumerate(names):
        policy.add(work(name, 0.05 * (n + 1)), 0.05 * (n + 1))
    assert policy.pick([room(99.0)], 0.9) == Wait(until=1.0)
    pick = picked(policy.pick([room(99.0)], 1.0))
    assert (pick.ids, "waited enough" in pick.why) == (("a", *names), True)


def test_the_earliest_deadline_leaves_time_for_a_batch_of_one_more():
    """A batch of 2 takes 0.3 s: one call whose deadline is in 0.5 s is held for 0.2 s."""
    policy = taught({1: 0.2, 2: 0.3}, wait_s=0.3)
    policy.add(work("a", 0.0, deadline=0.5), 0.0)
    assert policy.pick([room()], 0.0) == Wait(until=pytest.approx(0.2))
    pick = picked(policy.pick([room()], 0.2))
    assert "no time for a larger one of 0.300 s" in pick.why
    policy.add(work("b", 1.0, deadline=1.1), 1.0)
    assert picked(policy.pick([room()], 1.0)).ids == ("b",), "too late for any other already"


def test_when_nothing_more_is_expected_nothing_is_waited_for():
    policy = Deferred(wait_s=0.01)
    now, waits = 0.0, []
    for n in range(6):
        policy.add(work(f"a{n}", now), now)
        found = policy.pick([room()], now)
        if isinstance(found, Wait):
            waits.append(n)
            now = found.until
            found = policy.pick([room()], now)
        assert picked(found).ids == (f"a{n}",)
        now += 0.002
        policy.settled(done(f"a{n}", now))
        now += 0.001
    assert waits == [0], "only the first call of a lone client is held, while nothing is known"


def test_one_that_was_expected_and_has_not_come_is_given_up():
    policy, now = Deferred(wait_s=1.0), 0.0
    for n in range(40):  # two clients, 0.01 s after each other
        policy.add(work(f"a{n}", now), now)
        policy.add(work(f"b{n}", now + 0.01), now + 0.01)
        policy.pick([room(2.0)], now + 0.01)
        for name in "ab":
            policy.settled(done(f"{name}{n}", now + 0.05))
        now += 0.1
    policy.add(work("last", now), now)
    found = policy.pick([room()], now)
    assert isinstance(found, Wait)
    assert found.until - now < 0.1
    assert "has not come" in picked(policy.pick([room()], found.until)).why


def test_what_saves_no_time_together_is_not_held():
    policy = taught({1: 1.0, 2: 2.0}, wait_s=5.0)
    policy.add(work("a"), 0.0)
    assert "save no time" in picked(policy.pick([room()], 0.0)).why


def test_order_is_by_deadline_then_arrival_and_nobody_starves():
    policy = Deferred(wait_s=0.0, patience_s=5.0)
    policy.add(work("plain", 0.0), 0.0)
    policy.add(work("late", 0.1, deadline=9.0), 0.1)
    policy.add(work("soon", 0.2, deadline=1.0), 0.2)
    policy.add(work("plain too", 0.3), 0.3)
    order = [picked(policy.pick([room(1.0)], 0.5)).ids[0] for _ in range(4)]
    assert order == ["soon", "plain", "plain too", "late"]


def test_who_comes_back_runs_alone_and_first():
    policy = Deferred(wait_s=1.0)
    for name in "abc":
        policy.add(work(name), 0.0)
    policy.pick([room(3.0)], 0.0)
    for name in "ab":
        policy.add(work(name, attempt=1), 1.0)
    policy.add(work("new", 0.9), 1.0)
    picks = [picked(policy.pick([room()], 3.0)) for _ in range(3)]
    assert [pick.ids for pick in picks] == [("a",), ("b",), ("new",)]
    assert "alone" in picks[0].why


def test_times_are_learned_from_the_last_that_was_done():
    policy = Deferred(wait_s=0.0)
    for name in "ab":
        policy.add(work(name), 0.0)
    policy.pick([room(2.0)], 1.0)
    policy.settled(done("a", 1.5))
    assert policy.seconds.estimate(2) is None
    policy.settled(done("b", 9.0, OutcomeKind.CANCELLED))
    assert policy.seconds.estimate(2) == 0.5
    assert "0.500 s expected" in _one_more(policy)


def _one_more(policy: Deferred) -> str:
    policy.add(work("c"), 10.0)
    return picked(policy.pick([room(2.0)], 20.0)).why


def test_a_call_that_is_too_costly_for_the_room_waits():
    policy = Deferred(wait_s=0.0)
    policy.add(Work(id="a", payload=None, cost={"slots": 1.0, "gb": 9.0}, arrival=0.0), 0.0)
    small = Room(replica="r", free={"slots": 4.0, "gb": 1.0}, capacity={"slots": 4.0, "gb": 1.0}, running=0)
    assert policy.pick([small], 0.0) is None


@pytest.mark.parametrize("words", [{"wait_s": -1}, {"patience_s": -1}, {"size": 0}])
def test_bad_options_are_named(words: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(words))):
        Deferred(**words)


TERMS = st.tuples(st.floats(0, 0.02), st.none() | st.floats(0.001, 0.1), st.booleans(), st.floats(0.0005, 0.01))


@given(st.lists(TERMS, max_size=40), st.integers(1, 5))
def test_nothing_is_lost_no_batch_is_too_large_and_none_is_held_past_its_closing_time(terms: list[Any], slots: int):
    """One free replica, asked whenever something comes and whenever the policy wants to be asked."""
    wait_s = 0.01
    policy, now, seen = Deferred(wait_s=wait_s), 0.0, []
    arrivals: dict[str, float] = {}

    def ask(until: float) -> None:
        nonlocal now
        while arrivals:
            found = policy.pick([room(float(slots))], now)
            if isinstance(found, Wait):
                assert found.until > now, "it would be asked again and again"
                if found.until > until:
                    break
                now = found.until
                continue
            pick = picked(found)
            assert 1 <= len(pick.ids) <= slots
            assert now - min(arrivals[id] for id in pick.ids) <= wait_s + 1e-9
            for id in pick.ids:
                del arrivals[id]
                seen.append(id)
                policy.settled(done(id, now + 0.001))
        now = max(now, until)

    for n, (pause, deadline, leaves, _) in enumerate(terms):
        ask(now + pause)
        arrivals[f"r{n}"] = now
        policy.add(work(f"r{n}", now, deadline=None if deadline is None else now + deadline), now)
        if leaves:
            policy.remove(f"r{n}")
            policy.settled(done(f"r{n}", now, OutcomeKind.CANCELLED))
            seen.append(f"r{n}")
            del arrivals[f"r{n}"]
    ask(now + 1.0)
    assert not arrivals
    assert sorted(seen) == sorted(f"r{n}" for n in range(len(terms)))
    assert not policy._here
    assert not policy._waiting


# --- with a dispatcher


class Batches(ScriptedReplica):
    """Runs one batch at a time: 0.1 s and 0.01 s for each call."""

    def room(self) -> Room | None:
        return None if self.held else super().room()

    def run(self, works: Any, plan: Any) -> None:
        seconds = 0.1 + 0.01 * len(works)
        super().run(
            [Work(id=w.id, payload=seconds, cost=w.cost, arrival=w.arrival, attempt=w.attempt) for w in works], plan
        )


def house_of(slots: int = 8, **words: Any) -> tuple[House, Batches]:
    house = House(policy=Deferred(**words))
    replica = Batches("r0", house, slots)
    house.dispatcher.attach(replica)
    return house, replica


def test_a_lone_client_gets_its_answers_as_quickly_as_without_batches():
    async def main() -> None:
        house, _ = house_of(wait_s=0.05)
        for n in range(10):
            await house.submit(f"q{n}").settled()
        waits = [outcome.started - outcome.arrival for outcome in house.outcomes if outcome.started is not None]
        assert max(waits[1:]) == 0.0

    run(main())


def test_clients_in_step_share_batches_and_their_latency_is_that_of_one():
    async def main() -> None:
        house, replica = house_of(wait_s=0.05)

        async def client(name: str) -> None:
            await asyncio.sleep(0.002 * int(name))
            for n in range(10):
                await house.submit(f"{name}-{n}").settled()

        await asyncio.gather(*(client(str(n)) for n in range(4)))
        assert [len(batch) for batch in replica.batches[-5:]] == [4] * 5
        late = [o for o in house.outcomes if o.id.endswith("9")]
        assert all(o.ended - o.arrival < 0.16 for o in late)

    run(main())


def test_deadlines_are_met_by_closing_in_time():
    async def main() -> None:
        house, _ = house_of(wait_s=10.0)
        await house.submit("teach").settled()
        now = asyncio.get_running_loop().time()
        streams = [house.submit(f"q{n}", deadline=now + 0.5) for n in range(3)]
        for stream in streams:
            await stream.settled()
        assert {outcome.kind for outcome in house.outcomes} == {OutcomeKind.DONE}

    run(main())


def test_a_batch_whose_worker_dies_is_run_again_one_by_one_as_far_as_that_does_no_harm():
    async def main() -> None:
        house, replica = house_of(slots=4, wait_s=0.0)
        streams = [house.submit(f"q{n}", idempotent=n != 1) for n in range(4)]
        await asyncio.sleep(0.01)
        replica.die()
        second = Batches("r1", house, 4)
        house.dispatcher.attach(second)
        for stream in streams:
            await stream.settled()
        assert house.ended() == {"q0": "done", "q1": "failed", "q2": "done", "q3": "done"}
        assert second.batches == [("q0",), ("q2",), ("q3",)]

    run(main())
