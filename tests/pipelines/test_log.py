from __future__ import annotations

import asyncio

from foreserve.pipelines.channel import Channel
from foreserve.pipelines.log import WINDOW, Recall, whole
from foreserve.pipelines.stream import Stream
from foreserve.pipelines.text import Text


async def test_a_writer_waits_only_while_no_reader_waits_for_it():
    channel = Channel()
    slow, fast = Stream[int](channel), Stream[int](channel)
    channel.put(0, 0)
    assert [await anext(slow), await anext(fast)] == [0, 0]
    for index in range(1, WINDOW + 1):
        assert channel.open
        channel.put(index, index)
    assert not channel.open
    waiting = asyncio.ensure_future(channel.until_open())
    await asyncio.sleep(0)
    assert not waiting.done()
    await anext(fast)
    await asyncio.wait_for(waiting, 1)


async def test_a_reader_that_has_not_begun_holds_nobody_up():
    channel = Channel()
    begun, later = Stream[int](channel), Stream[int](channel)
    channel.put(0, 0)
    await anext(begun)
    for index in range(1, 3 * WINDOW):
        channel.put(index, index)
    assert channel.open
    later.close()
    assert not channel.open


async def test_a_writer_goes_on_when_its_reader_leaves():
    channel = Channel()
    reader = Stream[int](channel)
    channel.put(0, 0)
    await anext(reader)
    for index in range(1, WINDOW + 1):
        channel.put(index, index)
    waiting = asyncio.ensure_future(channel.until_open())
    await asyncio.sleep(0)
    reader.close()
    await asyncio.wait_for(waiting, 1)


def test_recall_tells_of_what_is_taken_back_until_it_is_closed():
    text, told = Text(), list[str]()
    recall = Recall(text, lambda: told.append("back"))
    text.append("a")
    text.retract()
    recall.close()
    text.retract()
    assert told == ["back"]


def test_whole_is_the_value_of_what_came_bit_by_bit():
    outer = Channel()
    outer.put(0, Text.of("a"))
    outer.end(1)
    assert whole(outer) == ["a"]
    assert whole(5) == 5
