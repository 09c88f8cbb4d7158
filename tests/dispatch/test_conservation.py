"""Random arrivals, departures, deadlines and deaths: whatever happens, every request ends exactly once."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from foreserve.core import OutcomeKind
from foreserve.dispatch.admission import Bounded
from foreserve.dispatch.batching import FirstCome, FixedBatches
from foreserve.dispatch.deferred import Deferred
from foreserve.dispatch.stream import Stream
from foreserve.simulation.clock import run
from tests.dispatch.harness import House, Listener

REQUESTS = 120


def one_night(seed: int) -> bytes:
    """A run with `seed`; its outcomes as bytes, for comparison."""
    draw = random.Random(seed)

    async def main() -> bytes:
        size = draw.randint(1, 5)
        policies = [FirstCome(), FixedBatches(size=size, max_wait_s=0.3), Deferred(size=size, wait_s=0.3)]
        policy = policies[draw.randrange(3)]
        house = House(policy=policy, admission=Bounded(max_waiting=20, max_wait_s=15.0), max_wait_s=20.0)
        alive = [house.replica(f"r{i}", slots=draw.randint(1, 4)) for i in range(3)]

        tellings: list[asyncio.Task[None]] = []

        async def hear(stream: Stream, text: str) -> None:
            """What is delivered of a tale is always its beginning, and all of it when it is done: nothing twice."""
            heard = "".join([letter async for letters in stream for letter in letters])
            assert stream.outcome is not None
            assert text.startswith(heard)
            if stream.outcome.kind is OutcomeKind.DONE:
                assert heard == text
                assert stream.outcome.usage == {"letters": len(text)}
            if stream.outcome.code == "replica_lost":
                assert stream.outcome.attempt == 1 or "may have had effects" in stream.outcome.reason

        async def client(number: int) -> None:
            await asyncio.sleep(draw.uniform(0, 30))
            now = asyncio.get_running_loop().time()
            deadline = now + draw.uniform(0.1, 8) if draw.random() < 0.4 else None
            terms = {"deadline": deadline, "idempotent": draw.random() < 0.8}
            if number % 2:
                text = "".join(draw.choices("abc", k=draw.randint(1, 20)))
                stream = house.tell(f"q{number}", text, draw.uniform(0.02, 0.3), **terms)
                tellings.append(asyncio.create_task(hear(stream, text)))
                return
            stream = house.submit(f"q{number}", draw.uniform(0.1, 3), **terms)
            if draw.random() < 0.2:
                await asyncio.sleep(draw.uniform(0, 3))
                stream.close()
            await stream.settled()

        async def grim() -> None:
            for generation in range(12):
                await asyncio.sleep(draw.uniform(0.5, 4))
                victim = alive.pop(draw.randrange(len(alive)))
                victim.die()
                await asyncio.sleep(draw.uniform(0, 2))
                alive.append(house.replica(f"g{generation}", slots=draw.randint(1, 4)))

        await asyncio.gather(grim(), *(client(number) for number in range(REQUESTS)))
        await asyncio.gather(*tellings)
        house.ledger.check(idle=True)
        assert len(house.outcomes) == REQUESTS
        assert len({outcome.id for outcome in house.outcomes}) == REQUESTS
        view = house.dispatcher.view()
        assert (view.waiting, view.running) == (0, 0)
        await asyncio.sleep(1)
        assert all(not replica.held for replica in alive), "a replica still works on what has ended"
        return msgspec.json.encode(house.outcomes)

    return run(main())


@pytest.mark.parametrize("seed", range(50))
def test_every_request_ends_exactly_once(seed: int):
    assert one_night(seed) == one_night(seed), "a seed gives the same bytes"


def test_answers_are_lost_in_the_middle_in_these_nights():
    before = Listener.resumptions
    for seed in range(3):
        one_night(seed)
    assert Listener.resumptions > before + 3
