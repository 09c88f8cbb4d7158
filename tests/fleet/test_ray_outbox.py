import asyncio

from foreserve.fleet.ray_outbox import BATCH_BYTES, Outbox


def outbox(held_bytes=10**9):
    told = []
    return Outbox(told.append, held_bytes), told


async def test_a_batch_is_all_that_has_gathered_in_order():
    box, _ = outbox()
    for number in range(5):
        box.put(b"%d" % number)
    assert await box.take() == ([b"0", b"1", b"2", b"3", b"4"], None)


async def test_it_waits_for_the_first():
    box, _ = outbox()
    taking = asyncio.create_task(box.take())
    await asyncio.sleep(0)
    assert not taking.done()
    box.put(b"a")
    assert await taking == ([b"a"], None)


async def test_a_batch_is_bounded_and_nothing_is_lost():
    box, _ = outbox()
    for _ in range(5):
        box.put(bytes(BATCH_BYTES // 2))
    box.end("stopped")
    assert [(len(batch), ended) for batch, ended in [await box.take() for _ in range(3)]] == [
        (2, None), (2, None), (1, "stopped")
    ]  # fmt: skip


async def test_a_message_longer_than_a_batch_goes_alone():
    box, _ = outbox()
    box.put(bytes(3 * BATCH_BYTES))
    box.put(b"a")
    batch, _ = await box.take()
    assert [len(message) for message in batch] == [3 * BATCH_BYTES]


async def test_the_end_comes_with_what_was_said_before_it():
    box, _ = outbox()
    box.put(b"last words")
    box.end("exit code 1")
    assert await box.take() == ([b"last words"], "exit code 1")
    assert await box.take() == ([], "exit code 1")


async def test_an_end_wakes_who_waits():
    box, _ = outbox()
    taking = asyncio.create_task(box.take())
    await asyncio.sleep(0)
    box.end("killed")
    assert await taking == ([], "killed")


async def test_it_tells_when_it_is_full_and_when_half_of_it_is_taken():
    box, told = outbox(held_bytes=10 * BATCH_BYTES)
    for _ in range(12):
        box.put(bytes(BATCH_BYTES))
    assert told == [True]
    while len(told) == 1:
        batch, _ = await box.take()
        assert batch
    assert told == [True, False]
    assert box._bytes == 5 * BATCH_BYTES
