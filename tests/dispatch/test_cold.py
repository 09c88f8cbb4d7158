"""Requests of a service that has no replica, at the dispatcher."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from foreserve.core import OutcomeKind, Work
from foreserve.dispatch.admission import Always, Bounded, Foreseen, Patient, predicted_total
from foreserve.dispatch.cold import Anteroom
from foreserve.dispatch.stream import Stream
from foreserve.ports import QueueView
from foreserve.simulation.clock import run
from tests.dispatch.harness import House, PlainDecoder

VIEW = QueueView(waiting=3, running=0, slots=0, seconds_per_request=2.0, cold_s=40.0)


class Fleet:
    limit_s = 60.0

    def __init__(self) -> None:
        self.asked = 0
        self.starts = False

    def coming(self) -> bool:
        return self.starts

    def ready_in(self, now: float) -> float:
        return 20.0

    def one(self) -> None:
        self.asked += 1


def work(deadline: float | None = None) -> Work:
    return Work(id="a", payload=None, cost={"slots": 1.0}, arrival=0.0, deadline=deadline)


@pytest.mark.parametrize("admission", [Bounded(10, 30.0), Foreseen(10, 30.0), Patient(10, 30.0), Always(10, 30.0)])
@pytest.mark.parametrize("waiting", [0, 3])
def test_the_time_of_a_start_counts_for_a_deadline_and_not_for_the_longest_wait(admission: object, waiting: int):
    view = msgspec.structs.replace(VIEW, waiting=waiting)
    assert admission.admit(work(), view, 0.0) is None  # type: ignore[attr-defined]
    assert admission.admit(work(1000.0), view, 0.0) is None  # type: ignore[attr-defined]
    assert predicted_total(work(), view) == 42.0 + 2.0 * waiting


def test_a_deadline_within_the_start_is_refused():
    for view in (VIEW, msgspec.structs.replace(VIEW, waiting=0)):
        refusal = Bounded(10, 30.0).admit(work(30.0), view, 0.0)
        assert refusal is not None
        assert "exceed its deadline in 30.0 s" in refusal.reason
        priced = msgspec.structs.replace(work(30.0), cost={})
        assert Foreseen(10, 30.0).admit(priced, view, 0.0) is not None


def test_a_replica_is_wanted_once_while_it_comes_and_waits_are_judged_from_when_it_is_there():
    async def main() -> None:
        house, fleet = House(max_wait_s=10.0), Fleet()
        house.dispatcher.unavailable = "not yet"
        house.dispatcher.wait_for(fleet, fleet.one)
        streams = [house.submit("a", 6.0)]
        assert fleet.asked == 1
        fleet.starts = True
        streams += [house.submit(name, 6.0) for name in "bc"]
        assert (fleet.asked, house.dispatcher.view().cold_s) == (1, 20.0)
        await asyncio.sleep(50.0)
        house.replica()
        outcomes = [await stream.settled() for stream in streams]
        assert [(outcome.kind, outcome.started) for outcome in outcomes[:2]] == [
            (OutcomeKind.DONE, 50.0),
            (OutcomeKind.DONE, 56.0),
        ]
        assert (outcomes[2].kind, outcomes[2].ended) == (OutcomeKind.SHED, 60.0), "10 s after it was there"
        assert "it waited 10 s" in outcomes[2].reason

    run(main())


def test_one_that_comes_and_goes_again_is_waited_for_only_so_long_in_all():
    async def main() -> None:
        house, fleet = House(max_wait_s=10.0), Fleet()
        house.dispatcher.wait_for(fleet, fleet.one)
        house.submit("runs", 1000.0)
        waits = house.submit("waits", 1.0)
        for number in range(20):
            await asyncio.sleep(5.0)
            replica = house.replica(f"r{number}")
            await asyncio.sleep(1.0)
            house.dispatcher.isolate(replica)
        assert waits.outcome is not None
        assert waits.outcome.ended <= 70.0

    run(main())


def test_before_the_first_replica_requests_wait_without_a_price_and_count_as_waiting():
    async def main() -> None:
        house, fleet = House(admission=Bounded(max_waiting=1, max_wait_s=9.0), max_wait_s=9.0), Fleet()
        house.dispatcher.wait_for(fleet, fleet.one)

        async def first(name: str, deadline: float | None = None) -> tuple[bool, Stream]:
            stream = Stream(name, PlainDecoder, bound=1, stall_s=1.0, on_leave=house.dispatcher.leave)
            bare = Work(id=name, payload=None, cost={}, arrival=0.0, deadline=deadline)
            return await house.dispatcher.first(bare, stream), stream

        waits = [asyncio.create_task(first(name)) for name in "ab"]
        late = asyncio.create_task(first("late", 5.0))
        await asyncio.sleep(2.0)
        load = house.dispatcher.load(2.0)
        assert (load.count, load.oldest_s, load.amounts) == (3, 2.0, {})
        assert fleet.asked == 3, "it is asked again as long as none comes"
        assert house.turned_away("one too many")
        ended, stream = await late
        assert (ended, asyncio.get_running_loop().time()) == (True, 5.0)
        assert stream.outcome is not None
        assert stream.outcome.kind is OutcomeKind.EXPIRED
        house.replica()
        assert [(await task)[0] for task in waits] == [False, False]
        assert house.dispatcher.load(6.0).count == 0
        house.ledger.check(idle=True)

    run(main())


def test_who_waits_for_the_first_replica_is_told_why_none_comes():
    async def main() -> None:
        house, fleet = House(), Fleet()
        house.dispatcher.wait_for(fleet, fleet.one)

        async def first(name: str) -> str:
            stream = Stream(name, PlainDecoder, bound=1, stall_s=1.0, on_leave=house.dispatcher.leave)
            assert await house.dispatcher.first(Work(id=name, payload=None, cost={}, arrival=0.0), stream)
            assert stream.outcome is not None
            return stream.outcome.reason

        waits = asyncio.create_task(first("a"))
        await asyncio.sleep(1.0)
        house.dispatcher.give_up("no memory")
        assert await waits == "no memory"
        house.dispatcher.unavailable = None
        assert "60 s" in await first("b")
        house.ledger.check(idle=True)

    run(main())


async def test_an_anteroom_forgets_who_left_it():
    room = Anteroom()
    left = asyncio.create_task(room.wait(asyncio.get_running_loop().time() + 100.0))
    await asyncio.sleep(0)
    assert (len(room), room.since is not None) == (1, True)
    left.cancel()
    await asyncio.wait([left])
    assert (len(room), room.since) == (0, None)
