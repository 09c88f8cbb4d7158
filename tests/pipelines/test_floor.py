from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from foreserve.pipelines.floor import Floor, Gate
from foreserve.simulation import clock


def test_turns_go_to_the_request_with_the_fewest_inside_then_to_the_oldest():
    order: list[str] = []

    async def main() -> None:
        gate = Gate(2)

        async def call(name: str, arrival: float) -> None:
            async with gate.turn(name, arrival):
                order.append(name)
                await asyncio.sleep(1)

        calls = [call("big", 0.0) for _ in range(5)] + [call("later", 2.0), call("small", 1.0)]
        await asyncio.gather(*calls)

    clock.run(main())
    assert order == ["big", "big", "small", "big", "later", "big", "big"]


@settings(max_examples=50, deadline=None)
@given(
    limit=st.integers(1, 3),
    calls=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5), st.booleans()), max_size=12),
)
def test_never_more_than_the_limit_and_nobody_left(limit: int, calls: list[tuple[str, int, bool]]):
    async def main() -> None:
        gate, inside = Gate(limit), 0

        async def call(name: str, seconds: int) -> None:
            nonlocal inside
            async with gate.turn(name, 0.0):
                inside += 1
                assert inside <= limit
                try:
                    await asyncio.sleep(seconds)
                finally:
                    inside -= 1

        tasks = [asyncio.ensure_future(call(name, seconds)) for name, seconds, _ in calls]
        await asyncio.sleep(1.5)
        for task, (_, _, leaves) in zip(tasks, calls, strict=True):
            if leaves:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (inside, gate.inside) == (0, {})
        async with gate.turn("last", 0.0):
            assert gate.inside == {"last": 1}

    clock.run(main())


def test_each_request_has_its_share():
    floor = Floor(frames=10)
    assert floor.share() == 10
    floor.running = 3
    assert floor.share() == 3
    floor.running = 100
    assert floor.share() == 1
