from __future__ import annotations

import asyncio
from typing import Any

from foreserve.core import EngineInfo, Forecast, Length, Outcome, OutcomeKind, Price, Request, Work
from foreserve.dispatch.admission import Bounded
from foreserve.fleet.replicas import Replicas
from foreserve.services.base import Service
from foreserve.settings import FunctionSettings
from foreserve.simulation.clock import run
from tests.dispatch.harness import House, PlainDecoder

FORECAST = Forecast(
    input_tokens=1, output=Length(mean=7.0, p50=7.0, p80=7.0, p95=7.0, source="fast"), most_tokens=9, seconds=1.0
)


class Seconds:
    """A kind whose payload is its own duration."""

    name = "seconds"
    policy = "fcfs"
    idempotent = True

    def engines(self) -> list[Any]:
        return []

    def price(self, request: Request) -> Price:
        return Price(cost={"slots": 1}, forecast=FORECAST)

    def settled(self, outcome: Outcome) -> None: ...

    def ready(self, info: EngineInfo) -> None: ...

    def decoder(self, work: Work) -> PlainDecoder:
        return PlainDecoder()

    def events_bound(self, payload: Any) -> int:
        return 10


def service(house: House) -> Service:
    kind = Seconds()
    replicas = Replicas("test", kind.engines, None, house.dispatcher, lambda info: None)  # type: ignore[arg-type]
    return Service(
        "test", kind, FunctionSettings(target="a:b"), house.dispatcher, replicas, house.ledger, house.outcomes.append
    )


def request(request_id: str, payload: Any = 1.0, **words: Any) -> Request:
    return Request(id=request_id, service="test", payload=payload, arrival=asyncio.get_running_loop().time(), **words)


def test_a_request_keeps_its_terms():
    async def main() -> None:
        house = House()
        replica = house.replica()
        stream = service(house).submit(request("a", tenant="acme", deadline=9.0, utility=0.5, affinity="k"))
        await asyncio.sleep(0)
        work = replica.held["a"]
        assert (work.tenant, work.deadline, work.utility, work.affinity) == ("acme", 9.0, 0.5, "k")
        outcome = await stream.settled()
        assert (outcome.kind, outcome.tenant) == (OutcomeKind.DONE, "acme")

    run(main())


def test_a_group_is_one_root_and_ends_as_its_worst_child():
    async def main() -> None:
        house = House()
        house.replica(slots=4)
        group = service(house).submit_group(request("root"), [1.0, 2.0, 50.0], [None] * 3)
        await asyncio.sleep(3)
        assert group.outcome is None
        group.streams[2].close()
        assert group.outcome is not None
        assert (group.outcome.kind, group.outcome.id) == (OutcomeKind.CANCELLED, "root")
        assert house.ledger.entered == {False: 1, True: 3}
        assert house.ledger.ended(OutcomeKind.CANCELLED) == 1
        assert house.ledger.ended(OutcomeKind.DONE, child=True) == 2
        assert house.outcomes[-1] == group.outcome, "whoever hears of outcomes hears of the root"
        assert group.outcome.usage == {"items": 14}, "7 and 7 of the engine, nothing of the third"
        house.ledger.check(idle=True)

    run(main())


def test_what_was_foreseen_of_a_group_is_that_of_its_children():
    async def main() -> None:
        house = House()
        house.replica(slots=4)
        service(house).submit_group(request("root"), [1.0, 1.0], [None] * 2)
        await asyncio.sleep(3)
        *children, root = house.outcomes
        assert [child.forecast for child in children] == [FORECAST, FORECAST]
        assert (root.id, root.forecast, root.beside) == ("root", None, ()), (
            "its usage is their sum, which is no child's"
        )

    run(main())


def test_a_group_that_is_shed_at_once_ends_too():
    async def main() -> None:
        house = House()
        house.dispatcher.give_up("closed")
        group = service(house).submit_group(request("root"), [1.0, 1.0], [None] * 2)
        assert group.outcome is not None
        assert group.outcome.kind is OutcomeKind.FAILED
        house.ledger.check(idle=True)

    run(main())


def test_status_counts():
    async def main() -> None:
        house = House()
        house.replica()
        served = service(house)
        streams = [served.submit(request(name)) for name in "abc"]
        await asyncio.sleep(0.5)
        status = served.status()
        assert (status.name, status.kind, status.waiting, status.running) == ("test", "seconds", 2, 1)
        assert not status.ready, "its own replicas are none"
        for stream in streams:
            await stream.settled()

    run(main())


def test_a_group_that_fits_the_free_slots_is_not_refused_for_its_size():
    async def main() -> None:
        house = House(admission=Bounded(max_waiting=2, max_wait_s=10))
        house.replica(slots=8)
        group = service(house).submit_group(request("root"), [1.0] * 8, [None] * 8)
        for stream in group.streams:
            assert (await stream.settled()).kind is OutcomeKind.DONE
        assert group.outcome is not None
        assert group.outcome.kind is OutcomeKind.DONE

    run(main())
