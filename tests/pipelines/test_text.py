from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve.pipelines.channel import Channel
from foreserve.pipelines.splitting import lines, pieces_of
from foreserve.pipelines.text import Cutter, Text


async def test_a_text_is_read_while_it_is_written_or_as_a_whole():
    text = Text()

    async def write() -> None:
        for part in ("on", "e", " two"):
            text.append(part)
            await asyncio.sleep(0)
        text.close()

    writing = asyncio.ensure_future(write())
    assert [part async for part in text] == ["on", "e", " two"]
    assert await text == "one two"
    await writing


def test_parts_that_came_already_are_left_out():
    text = Text()
    for number, part in [(0, "a"), (0, "a"), (1, "b"), (0, "a"), (1, "b"), (2, "c")]:
        text.append(part, number)
    text.append("stale", 3, attempt=1)
    assert text.whole() == "abc"
    with pytest.raises(ValueError, match="part 5 of a text came when 3 were here"):
        text.append("f", 5)


@given(st.lists(st.text(alphabet="a \n", max_size=5), max_size=8), st.integers(0, 8))
def test_pieces_of_a_growing_text_are_those_of_the_whole_also_when_it_begins_anew(parts: list[str], lost: int):
    text, out = Text(), Channel()
    Cutter(text, lines, out).start()
    for part in parts[:lost]:
        text.append(part)
    if lost < len(parts):
        text.retract()
        lost = 0
    for part in parts[lost:]:
        text.append(part)
    assert not out.complete
    text.close()
    assert out.complete
    assert out.whole() == pieces_of("".join(parts), lines)


def test_a_piece_is_there_before_it_is_whole():
    text, out = Text(), Channel()
    Cutter(text, lines, out).start()
    text.append("one li")
    (piece,) = out.items
    assert (piece.whole(), piece.complete) == ("one li", False)
    text.append("ne\n")
    assert (piece.whole(), piece.complete) == ("one line", True)


async def test_a_text_whose_reader_was_cancelled_tells_nobody():
    text = Text()
    reading = asyncio.ensure_future(_read(text))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    text.close()
    assert reading.cancelled()


async def _read(text: Text) -> str:
    return await text
