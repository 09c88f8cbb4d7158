from __future__ import annotations

import asyncio

from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Ramp, Work
from foreserve.dispatch.decisions import FrozenRoom, frozen
from foreserve.fleet.replica import Replica
from foreserve.messages import Chunks, Heartbeat, Ready
from foreserve.ports import Room
from foreserve.simulation.clock import run


def work(name: str) -> Work:
    ramp = Ramp(resource="kv_tokens", base=100, steps=50, most=400)
    return Work(id=name, payload=None, cost={"slots": 1.0, "kv_tokens": 150.0}, arrival=0.0, ramp=ramp)


def test_what_it_can_take_is_the_same_object_only_while_nothing_about_it_has_changed():
    async def main() -> None:
        replica = Replica("r", on_ready=lambda _: None, on_chunks=lambda *_: None, on_gone=lambda _: None)
        seen: list[tuple[Room, FrozenRoom]] = []

        def look() -> bool:
            """Whether it is what it was at the last look; then it reads as it did."""
            room = replica.room()
            assert room is not None
            same = bool(seen) and seen[-1][0] is room
            assert not same or seen[-1][1] == frozen(room)
            seen.append((room, frozen(room)))
            return same

        info = EngineInfo(capacity={"slots": 8.0, "kv_tokens": 5000.0}, batching="continuous")
        replica.heard(Ready(info=info, pid=1))
        look()
        await asyncio.sleep(5.0)
        assert look()
        replica.heard(Heartbeat(load=EngineLoad(last_step_s=0.1)))
        assert not look()
        replica.run([work("a"), work("b")], None)
        assert not look()
        assert look()
        await asyncio.sleep(0.05)
        assert look()
        steps = 0
        for _ in range(20):
            await asyncio.sleep(0.03)
            steps += not look()
        assert 5 <= steps <= 7
        replica.heard(Chunks(chunks=(Chunk(id="a", index=0, data=None, finish=Finish(reason="stop")),)))
        assert not look()
        replica.heard(Chunks(chunks=(Chunk(id="b", index=0, data=None, finish=Finish(reason="stop")),)))
        assert not look()
        await asyncio.sleep(60.0)
        assert look()

    run(main())


def test_one_whose_room_changes_by_what_others_do_says_so() -> None:
    heard: list[Replica] = []

    async def tell() -> None:
        replica = Replica(
            "r", on_ready=lambda _: None, on_chunks=lambda *_: None, on_gone=lambda _: None, on_room=heard.append
        )
        for others in (None, None, 2, 2, 0):
            replica.heard(Heartbeat(EngineLoad(others=others)))

    asyncio.run(tell())
    assert len(heard) == 2
