from __future__ import annotations

import asyncio
import gc

from foreserve.engines.backlog import LEAST_BYTES, MOST_BYTES, Backlog


async def test_there_is_room_until_too_much_is_undelivered() -> None:
    backlog = Backlog("a")
    half = bytes(MOST_BYTES // 2)
    backlog.given(half)
    backlog.given(half)
    assert not backlog.full
    backlog.given(b"x")
    assert backlog.full
    waiting = asyncio.create_task(backlog.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    backlog.delivered([b"x"])
    await asyncio.wait_for(waiting, 5)


async def test_small_parts_are_bounded_in_number() -> None:
    backlog = Backlog("a")
    count = 0
    while not backlog.full:
        backlog.given(b"x")
        count += 1
    assert count == MOST_BYTES // LEAST_BYTES + 1
    backlog.restart()
    assert not backlog.full


async def test_it_is_found_as_long_as_somebody_keeps_it() -> None:
    backlog = Backlog("a")
    assert Backlog.of("a") is backlog
    assert Backlog.of("b") is None
    del backlog
    gc.collect()
    assert Backlog.of("a") is None
