from __future__ import annotations

import asyncio

import pytest

from foreserve.pipelines.channel import Channel
from foreserve.pipelines.stream import Stream
from foreserve.pipelines.text import Text


async def test_items_are_converted_and_awaited_where_they_can_be():
    channel = Channel()
    channel.put(0, Text.of("ab"))
    channel.put(1, Text.of("c"))
    channel.end(2)
    assert await Stream[str](channel, lambda text: text).to_list() == ["ab", "c"]
    assert [text.whole() for text in await Stream[Text](channel).to_list()] == ["ab", "c"]


async def test_it_ends_once_the_count_is_reached_though_children_go_on():
    channel, child = Channel(), Channel()
    channel.put(0, child)
    channel.end(1)
    stream = Stream[Channel](channel)
    assert await anext(stream) is child
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert not channel.complete


async def test_who_has_read_hears_of_what_is_taken_back_of_items_too():
    channel, told = Channel(), list[str]()
    unread, read = Stream[Text](channel), Stream[Text](channel)
    unread.on_retract = lambda: told.append("unread")
    read.on_retract = lambda: told.append("read")
    text = Text()
    channel.put(0, text)
    await anext(read)
    text.retract()
    channel.retract()
    assert told == ["read", "read"]


async def test_a_waiting_reader_goes_on_with_the_next_item():
    channel = Channel()
    waiting = asyncio.ensure_future(anext(Stream[int](channel)))
    await asyncio.sleep(0)
    channel.put(0, 5)
    assert await asyncio.wait_for(waiting, 1) == 5
