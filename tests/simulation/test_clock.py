from __future__ import annotations

import asyncio
import random

import pytest

from foreserve import clock
from foreserve.simulation.clock import MOST_CANCELLED, Deadlock, Livelock, VirtualLoop, run


def test_hours_pass_at_once_and_exactly():
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        seen = []
        for _ in range(5):
            await asyncio.sleep(3600)
            seen.append(loop.time())
        return seen

    assert run(main()) == [3600.0, 7200.0, 10800.0, 14400.0, 18000.0]


def test_timers_fire_in_order_of_time_then_of_setting():
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        seen: list[str] = []
        loop.call_later(2, seen.append, "late")
        loop.call_later(1, seen.append, "first")
        loop.call_later(1, seen.append, "second")
        loop.call_later(0.5, seen.append, "never").cancel()
        await asyncio.sleep(3)
        return seen

    assert run(main()) == ["first", "second", "late"]


def test_wait_for_and_timeouts_work():
    async def main() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 10)
        async with asyncio.timeout(5):
            await asyncio.sleep(4)
        return asyncio.get_running_loop().time()

    assert run(main()) == 14.0


def test_what_can_never_happen_is_a_deadlock_not_a_hang():
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match="nothing is ready"):
        run(main())


@pytest.mark.parametrize("timers", [True, False])
def test_time_that_stands_still_is_an_error_not_a_hang(monkeypatch, timers):
    monkeypatch.setattr("foreserve.simulation.clock.MOST_TURNS", 1000)

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def round_and_round() -> None:
            if timers:
                loop.call_at(loop.time(), round_and_round)
            else:
                loop.call_soon(round_and_round)

        await asyncio.sleep(2.5)
        round_and_round()
        await asyncio.sleep(1.0)

    with pytest.raises(Livelock, match=r"at 2\.500000 s time stands still: 1000 turns.*round_and_round"):
        run(main())


def test_many_turns_are_no_livelock_while_time_moves(monkeypatch):
    monkeypatch.setattr("foreserve.simulation.clock.MOST_TURNS", 50)

    async def main() -> float:
        for _ in range(100):
            await asyncio.sleep(0.1)
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(10.0)


def test_the_operating_system_is_refused():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        with pytest.raises(RuntimeError, match="file descriptors"):
            loop.add_reader(0, lambda: None)
        with pytest.raises(RuntimeError, match="executors"):
            loop.run_in_executor(None, lambda: None)
        with pytest.raises(RuntimeError, match="executors"):
            await asyncio.to_thread(lambda: None)
        with pytest.raises(RuntimeError, match="subprocesses"):
            await asyncio.create_subprocess_exec("true")
        with pytest.raises(RuntimeError, match="sockets"):
            await asyncio.open_connection("127.0.0.1", 1)

    run(main())


def test_offload_costs_virtual_time_and_wall_time_is_the_traces():
    async def main() -> tuple[int, float, float]:
        result = await clock.offload(lambda: 6 * 7, cost=2.5)
        return result, clock.now(), clock.wall()

    assert run(main(), epoch=1000.0) == (42, 2.5, 1002.5)


async def test_offload_live_runs_in_a_thread():
    assert await clock.offload(lambda: 6 * 7) == 42


def test_left_over_tasks_are_cancelled():
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(1e9)
        finally:
            ended.append("cancelled")

    async def main() -> None:
        asyncio.get_running_loop().create_task(forever())
        await asyncio.sleep(1)

    run(main())
    assert ended == ["cancelled"]


def test_a_seed_gives_the_same_run():
    def once() -> list[tuple[float, int]]:
        draw = random.Random(7)
        seen: list[tuple[float, int]] = []

        async def one(number: int) -> None:
            for _ in range(5):
                await asyncio.sleep(draw.expovariate(1.0))
                seen.append((asyncio.get_running_loop().time(), number))

        async def main() -> None:
            await asyncio.gather(*(one(number) for number in range(20)))

        run(main())
        return seen

    assert once() == once()


def test_cancelled_timers_do_not_pile_up():
    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        kept = [loop.call_later(3600, lambda: None) for _ in range(10)]
        for _ in range(10_000):
            loop.call_later(3600, lambda: None).cancel()
        most = len(loop._timers)
        for timer in kept:
            timer.cancel()
            timer.cancel()  # no more than once
        await asyncio.sleep(7200)
        return most

    assert run(main()) <= 10 + 2 * MOST_CANCELLED


def test_a_timer_cancelled_in_its_own_moment_does_not_fire():
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        seen: list[str] = []
        timers: list[asyncio.TimerHandle] = []
        loop.call_later(1, lambda: timers[0].cancel())
        timers.append(loop.call_later(1, seen.append, "cancelled by the one before"))
        await asyncio.sleep(2)
        return seen

    assert run(main()) == []


def test_what_a_callback_raises_is_told_and_does_not_end_the_loop():
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        told: list[str] = []
        loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))

        def fails() -> None:
            raise ValueError("from a timer")

        loop.call_later(1, fails)
        await asyncio.sleep(2)
        return told

    assert run(main()) == ["from a timer"]
