"""Calls that are made again: what they gave is taken back, or they go on from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from foreserve.errors import ReplicaLost
from foreserve.pipelines.events import Item, Retracted
from foreserve.pipelines.pipeline import pipeline
from foreserve.pipelines.splitting import lines
from foreserve.pipelines.stage import Stage, stage
from foreserve.pipelines.stream import Stream
from foreserve.pipelines.text import Text
from tests.pipelines.stages import count, double, shout, total


class Losing:
    """Stages whose replica is lost after two items, so many times."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.calls = 0

    def numbers(self, **words: Any) -> Stage:
        @stage(**words)
        async def numbers(n: int) -> AsyncIterator[int]:
            self.calls += 1
            for i in range(n):
                if i == 2:
                    await asyncio.sleep(0.01)
                    self.lose()
                # Under another attempt other items, unless it goes on: then they must be the same.
                yield i if words.get("again") == "continue" else 100 * self.calls + i

        return numbers

    def text(self) -> Stage:
        @stage
        async def text(n: int) -> Text:
            self.calls += 1
            yield f"call {self.calls}\nli"
            await asyncio.sleep(0.01)
            self.lose()
            yield "ne\n"

        return text

    def lose(self) -> None:
        if self.left:
            self.left -= 1
            raise ReplicaLost("gone")


@pytest.mark.parametrize("stream", ["inline", "frames", "stage", "flat", "gathered"])
async def test_what_a_lost_call_gave_is_taken_back_with_all_that_was_made_of_it(stream: str):
    losing = Losing(1)
    numbers = losing.numbers()

    @stage
    async def slow_double(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    @stage
    async def onward(xs: Stream[int]) -> AsyncIterator[int]:
        async for x in xs:
            yield 2 * x

    @pipeline
    def p(n: int) -> Any:
        xs = numbers(n)
        return {
            "inline": lambda: xs.map(double),
            "frames": lambda: xs.map(slow_double),
            "stage": lambda: onward(xs),
            "flat": lambda: xs.map(lambda x: count(1).map(lambda _: double(x))).flatten(),
            "gathered": lambda: xs.gather().map(double),
        }[stream]()

    run = p.start(4)
    events = [event async for event in run.each()]
    assert run.value() == [400, 402, 404, 406]
    assert losing.calls == 2
    last = max((i for i, event in enumerate(events) if isinstance(event, Retracted)), default=-1)
    assert last >= 0 or stream == "gathered"
    assert [event.value for event in events[last + 1 :] if isinstance(event, Item)] in (
        [400, 402, 404, 406],
        [[400, 402, 404, 406]],
    )
    await asyncio.sleep(0)
    assert (run.frames, run.invocations) == (0, 0)


async def test_a_call_that_gives_the_same_again_goes_on_from_what_it_gave():
    losing = Losing(1)
    numbers = losing.numbers(again="continue")

    @pipeline
    def p(n: int) -> Any:
        return numbers(n).map(double)

    run = p.start(4)
    events = [event async for event in run.each()]
    assert [event.value for event in events if isinstance(event, Item)] == [0, 2, 4, 6]
    assert not any(isinstance(event, Retracted) for event in events)
    assert losing.calls == 2


async def test_pieces_of_a_text_that_begins_anew():
    losing = Losing(1)
    text = losing.text()

    @pipeline
    def p(n: int) -> Any:
        return text(n).split(lines).map(shout)

    assert await p(1) == ["CALL 2", "LINE"]


async def test_a_stage_that_reads_a_live_text_begins_anew_with_it():
    losing, read = Losing(1), list[str]()
    text = losing.text()

    @stage
    async def reads(text: Text) -> str:
        parts = ""
        async for part in text:
            parts += part
            read.append(part)
        return parts

    @pipeline
    def p(n: int) -> Any:
        return reads(text(n))

    assert await p(1) == "call 2\nline\n"
    assert read == ["call 1\nli", "call 2\nli", "ne\n"]


async def test_attempts_are_bounded():
    losing = Losing(9)
    numbers = losing.numbers(attempts=3)

    @pipeline
    def p(n: int) -> Any:
        return total(numbers(n))

    with pytest.raises(ReplicaLost, match="gone"):
        await p(4)
    assert losing.calls == 3


async def test_a_stage_that_is_cancelled_from_within_has_failed():
    @stage
    async def gives_up(x: int) -> int:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    @pipeline
    def p(n: int) -> Any:
        return gives_up(n)

    with pytest.raises(RuntimeError, match="stage gives_up was cancelled from within"):
        await asyncio.wait_for(p(1), 5)


async def test_a_generator_that_is_not_wanted_any_more_is_closed():
    closed = asyncio.Event()

    @stage
    async def endless(n: int) -> AsyncIterator[int]:
        try:
            while True:
                yield n
                await asyncio.sleep(0)
        finally:
            closed.set()

    @stage
    async def fails(xs: Stream[int]) -> int:
        await anext(xs)
        raise ValueError("no")

    @pipeline
    def p(n: int) -> Any:
        return fails(endless(n))

    with pytest.raises(ValueError, match="no"):
        await p(1)
    await asyncio.wait_for(closed.wait(), 5)
