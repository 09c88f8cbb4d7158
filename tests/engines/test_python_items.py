from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from foreserve.calling import Call
from foreserve.engines.python_code import load_code
from foreserve.engines.python_items import Calling, items_of
from foreserve.engines.python_values import Raised

made: list[str] = []


def plain(word: str) -> str:
    return word


def several(word: str) -> Iterator[str]:
    for letter in word:
        made.append(letter)
        yield letter


async def later(word: str) -> str:
    await asyncio.sleep(0)
    return word


async def some(word: str) -> AsyncIterator[str]:
    for letter in word:
        made.append(letter)
        yield letter


def breaks(word: str) -> Iterator[str]:
    yield word
    raise ValueError("broken")


async def here(call: Calling, fn: Callable[[], Any]) -> Any:
    """In no thread."""
    return call.run(fn)


@pytest.fixture(autouse=True)
def nothing_made():
    made.clear()


@pytest.mark.parametrize(
    ("code", "expected"), [(plain, ["ab"]), (several, ["a", "b"]), (later, ["ab"]), (some, ["a", "b"])]
)
async def test_a_result_is_one_item_and_a_generator_makes_several(code, expected):
    call = Calling(Call(), {"word": "ab"})
    assert [item async for item in items_of(call, await load_code(code), here)] == expected


@pytest.mark.parametrize("code", [several, some])
async def test_an_item_is_made_when_it_is_asked_for(code):
    call = Calling(Call(), {"word": "abc"})
    items = items_of(call, await load_code(code), here)
    assert await anext(items) == "a"
    assert made == ["a"]
    assert await anext(items) == "b"
    call.cancel()
    assert [item async for item in items] == []
    assert made == ["a", "b"]


async def test_what_is_raised_is_the_last_item():
    call = Calling(Call(), {"word": "a"})
    first, last = [item async for item in items_of(call, await load_code(breaks), here)]
    assert first == "a"
    assert isinstance(last, Raised)
    assert last.words == "ValueError: broken"
