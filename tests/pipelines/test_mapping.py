"""What becomes of children: in which order they come, how many run at once, and what if one fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from foreserve.pipelines.failing import default
from foreserve.pipelines.floor import Floor
from foreserve.pipelines.flow import Flow
from foreserve.pipelines.pipeline import pipeline
from foreserve.pipelines.run import Run
from foreserve.pipelines.splitting import words
from foreserve.pipelines.stage import stage
from foreserve.pipelines.stream import Stream
from foreserve.pipelines.text import Text
from foreserve.simulation import clock
from tests.pipelines.stages import count, double, odd_fails, plus, slowly, write


@stage
async def in_order(xs: Stream[int]) -> list[int]:
    return await xs.to_list()


@stage
async def odd_fails_later(x: int) -> int:
    await asyncio.sleep(0.01)
    return odd_fails.call_now()(x)  # type: ignore[no-any-return]


BODIES = {
    "inline": odd_fails,
    "in a task": odd_fails_later,
    "in a frame": lambda x: double(odd_fails(plus(x, 0))),
}


@pytest.mark.parametrize("body", BODIES)
async def test_a_child_that_fails_fails_all_unless_it_is_dropped_or_stood_in_for(body: str):
    @pipeline
    def p(n: int) -> Any:
        return {
            "dropped": in_order(count(n).map(BODIES[body], failed="drop", ordered=True)),
            "default": count(n).map(BODIES[body], failed=default(-1)),
        }

    @pipeline
    def fails(n: int) -> Any:
        return count(n).map(BODIES[body])

    times = 2 if body == "in a frame" else 1
    assert await p(5) == {"dropped": [0, 2 * times, 4 * times], "default": [0, -1, 2 * times, -1, 4 * times]}
    run = fails.start(5)
    with pytest.raises(ValueError, match="1 is odd"):
        await run.result()
    await asyncio.sleep(0)
    assert (run.frames, run.invocations) == (0, 0)


async def test_dropped_children_are_dropped_all_the_way_also_where_order_is_kept():
    @pipeline
    def p(n: int) -> Any:
        kept = count(n).map(odd_fails, failed="drop")
        return in_order(kept.map(slowly, ordered=True)), kept.map(lambda x: count(x).map(double)).flatten()

    assert await p(6) == ([0, 2, 4], [0, 2, 0, 2, 4, 6])


@stage(failed="drop")
async def drops(x: int) -> int:
    raise ValueError(x)


@stage(failed=default(7))
async def stands_in(x: int) -> int:
    raise ValueError(x)


async def test_a_stage_says_itself_what_becomes_of_its_failures():
    @pipeline
    def p(n: int) -> Any:
        return {"dropped": count(n).map(drops), "default": count(n).map(stands_in), "alone": stands_in(n)}

    assert await p(3) == {"dropped": [], "default": [7, 7, 7], "alone": 7}


@stage
async def some_then_fails(x: int) -> AsyncIterator[int]:
    yield x
    yield x
    if x % 2:
        raise ValueError(x)


@stage(failed=default("nothing"))
async def writes_then_fails(x: int) -> Text:
    yield "half a"
    raise ValueError(x)


async def test_a_stream_that_was_handed_on_is_taken_back_where_its_child_fails():
    @pipeline
    def p(n: int) -> Any:
        lists = count(n).map(some_then_fails, failed="drop")
        return {
            "flat": in_order(lists.flatten(ordered=True)),
            "nested": count(n).map(some_then_fails, failed=default([9])),
            "text": count(n).map(lambda x: writes_then_fails(x)),
            "words": count(n).map(lambda x: writes_then_fails(x).split(words)),
        }

    assert await p(3) == {
        "flat": [0, 0, 2, 2],
        "nested": [[0, 0], [9], [2, 2]],
        "text": ["nothing"] * 3,
        "words": [["nothing"]] * 3,
    }


class Crowd:
    """Counts how many are inside."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def enter(self, x: int) -> int:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(1)
        self.now -= 1
        return x


def test_requests_share_the_frames_in_flight_evenly():
    crowds = [Crowd(), Crowd()]

    @stage
    async def enter(x: int, who: int) -> int:
        return await crowds[who].enter(x)

    @pipeline
    def p(n: int, who: int) -> Any:
        return count(n).map(lambda x: enter(x, who))

    async def main() -> list[float]:
        floor, ended = Floor(frames=8), list[float]()
        runs = [Run(p.plan, {"n": 40, "who": who}, id=str(who), floor=floor).start() for who in (0, 1)]
        for run in runs:
            run.when_ended(lambda _: ended.append(asyncio.get_running_loop().time()))
        await asyncio.gather(*(run.result() for run in runs))
        assert (floor.running, floor.share()) == (0, 8)
        return ended

    assert clock.run(main()) == [10.0, 10.0]
    assert [crowd.most for crowd in crowds] == [4, 4]


async def test_a_map_goes_no_faster_than_its_results_are_read():
    begun = 0

    @stage
    async def begin(x: int) -> int:
        nonlocal begun
        begun += 1
        return x

    held = asyncio.Event()

    @stage
    async def reads_two(xs: Stream[int]) -> int:
        await anext(xs)
        await anext(xs)
        await held.wait()
        return sum([x async for x in xs])

    @pipeline
    def p(n: int) -> Any:
        return reads_two(count(n).map(begin))

    running = asyncio.ensure_future(p(5000))
    for _ in range(100):
        await asyncio.sleep(0)
    assert 2 <= begun < 200
    held.set()
    assert await running == sum(range(2, 5000))


@pytest.mark.parametrize("where", ["element", "outer"])
async def test_a_body_may_give_what_it_was_given(where: str):
    @pipeline
    def p(n: int, m: Flow[int]) -> Any:
        late = slowly(m)
        return count(n).map(lambda x: x if where == "element" else late)

    assert await p(2, 9) == ([0, 1] if where == "element" else [9, 9])


async def test_a_child_that_is_handed_on_as_it_came_is_dropped_for_its_map_alone():
    @stage
    async def only_a(text: str) -> str:
        await asyncio.sleep(0)
        if text != "a":
            raise ValueError(text)
        return text

    @pipeline
    def p(text: str) -> Any:
        pieces = write(text).split(words)

        def body(piece: Any) -> Any:
            only_a(piece)
            return piece

        return {"kept": pieces.map(body, failed="drop"), "all": pieces}

    assert await p("a b") == {"kept": ["a"], "all": ["a", "b"]}
