from __future__ import annotations

import asyncio
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from foreserve.pipelines.channel import Channel
from foreserve.pipelines.pipeline import pipeline
from foreserve.pipelines.shaping import Flat, OrderedFlat
from foreserve.pipelines.stage import stage
from foreserve.pipelines.stream import Stream
from foreserve.simulation import clock


@given(st.lists(st.integers(0, 3), max_size=5), st.integers(0, 10**6))
def test_flatten_knows_its_total_only_when_both_levels_have_ended(sizes: list[int], seed: int):
    chance = random.Random(seed)
    outer, flat, in_order = Channel(), Channel(), Channel()
    Flat(outer, flat).start()
    OrderedFlat(outer, in_order).start()
    inners = [Channel() for _ in sizes]
    acts: list[Any] = [lambda: outer.end(len(sizes))]
    for i, inner in enumerate(inners):
        acts += [lambda i=i, inner=inner: outer.put(i, inner), lambda i=i, inner=inner: inner.end(sizes[i])]
        acts += [lambda i=i, j=j, inner=inner: inner.put(j, (i, j)) for j in range(sizes[i])]
    chance.shuffle(acts)
    for done, act in enumerate(acts):
        assert not flat.complete or not sizes or done == len(acts)
        act()
    expected = [(i, j) for i, size in enumerate(sizes) for j in range(size)]
    assert flat.complete
    assert in_order.complete
    assert flat.whole() == expected
    assert in_order.items == expected
    assert in_order.indices == list(range(len(expected)))


@stage
async def delayed(x: int) -> int:
    await asyncio.sleep(x)
    return x


@stage
async def as_they_come(xs: Stream[int]) -> list[int]:
    return await xs.to_list()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=4))
def test_flatten_in_order_and_as_they_come(rows: list[list[int]]):
    @pipeline
    def p(rows: list[list[int]]) -> Any:
        nested = rows.map(lambda row: row.map(delayed, ordered=True), ordered=True)
        return as_they_come(nested.flatten(ordered=True)), as_they_come(nested.flatten()), nested.flatten()

    in_order, as_made, by_number = clock.run(_result(p, rows))
    flat = [x for row in rows for x in row]
    assert in_order == by_number == flat
    assert sorted(as_made) == sorted(flat)


async def _result(p: Any, *args: Any) -> Any:
    return await p(*args)


async def test_parts_of_values():
    @stage
    async def pair(n: int) -> tuple[int, dict[str, int]]:
        return n, {"twice": 2 * n}

    @pipeline
    def p(n: int) -> Any:
        both = pair(n)
        return both[0], both[1]["twice"]

    assert await p(4) == (4, 8)
