from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreserve.errors import BadRequest
from foreserve.pipelines.events import Item
from foreserve.pipelines.flow import join
from foreserve.pipelines.pipeline import pipeline
from foreserve.pipelines.splitting import lines, words
from foreserve.pipelines.stage import stage
from foreserve.pipelines.stream import Stream
from foreserve.simulation import clock
from tests.pipelines.stages import count, double, in_time, listed, plus, shout, slowly, total, write


@pipeline
def short(n: int) -> Any:
    return total(count(n).map(double))


async def test_a_linear_pipeline_in_three_lines():
    assert await short(5) == 20
    assert await short(n=0) == 0


@stage
async def score(query_words: Stream[str]) -> int:
    """Adds up, so it needs all words of one query, in whatever order."""
    return sum([len(word) async for word in query_words])


@stage
async def encode(query: str) -> str:
    await asyncio.sleep(0.02)
    return query[::-1]


@stage
async def rank(score: int, vector: str) -> str:
    return f"{vector}:{score}"


@stage
async def ask(claim: str) -> AsyncIterator[str]:
    for part in claim.split(","):
        await asyncio.sleep(0.01)
        if part.strip():
            yield part.strip()


@stage
async def judge(claim: str, evidence: Stream[str]) -> tuple[str, list[str]]:
    return claim, sorted([each async for each in evidence])


@pipeline
def facts(question: str) -> Any:
    answer = write(question)

    def search(query: Any) -> Any:
        return rank(score(query.split(words)), encode(query))

    def check(claim: Any) -> Any:
        return judge(claim, ask(claim).map(search))

    return {"answer": answer, "verdicts": answer.split(lines).map(check)}


def expected(text: str) -> list[tuple[str, list[str]]]:
    claims = [line.strip() for line in text.split("\n") if line.strip()]
    return [
        (claim, sorted(f"{q.strip()[::-1]}:{len(''.join(q.split()))}" for q in claim.split(",") if q.strip()))
        for claim in claims
    ]


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab ,\n", max_size=40))
def test_levels_meet_again_whatever_the_text(text: str):
    async def main() -> None:
        run = facts.start(text)
        result = await run.result()
        assert result == {"answer": text, "verdicts": expected(text)}
        await asyncio.sleep(0)
        assert (run.frames, run.invocations) == (0, 0)

    clock.run(main())


def test_stages_overlap():
    """The first verdict is there long before the text is."""

    async def main() -> tuple[list[float], float]:
        run = facts.start("a b,c\n" + "d" * 200)
        loop = asyncio.get_running_loop()
        times = [loop.time() async for event in run.each() if event.name == "verdicts" and isinstance(event, Item)]
        return times, loop.time()

    times, end = clock.run(main())
    assert len(times) == 2
    assert times[0] < 0.15
    assert end > 2.0


@pytest.mark.parametrize("text", ["", "\n \n", "one claim", ",\n,", "a,b\n,\nc"])
async def test_none_one_and_some_without_children(text: str):
    assert (await facts(text))["verdicts"] == expected(text)


@stage
async def slow_path(x: int) -> int:
    await asyncio.sleep(0)
    return x


async def test_ten_thousand_children_of_one_parent():
    @pipeline
    def wide(n: int) -> Any:
        return join(count(n).map(lambda x: plus(double(x), 1)), total(count(n).map(slow_path)))

    run = wide.start(10_000)
    results, added = await run.result()
    assert results == [2 * i + 1 for i in range(10_000)]
    assert added == sum(range(10_000))
    await asyncio.sleep(0)
    assert (run.frames, run.invocations) == (0, 0)


async def test_outer_values_are_seen_in_every_child():
    @pipeline
    def p(n: int, m: int) -> Any:
        base = slowly(m)
        xs = count(n)
        return xs.map(lambda x: xs.map(lambda y: plus(plus(x, y), base)).gather()), xs.map(lambda x: base)

    assert await p(2, 9) == ([[9, 10], [10, 11]], [9, 9])


async def test_work_on_one_side_begins_before_the_other_is_there():
    @pipeline
    def p(n: int) -> Any:
        return in_time(n, slowly(n))

    assert await p(30) == [30, 30]


@stage
async def total_in_order(xs: Stream[int]) -> list[int]:
    return await xs.to_list()


async def test_a_list_is_mapped_and_an_order_kept_where_asked():
    @pipeline
    def p(n: int) -> Any:
        return {
            "listed": listed(count(n)).map(double),
            "ordered": total_in_order(listed(count(n)).map(slowly, ordered=True)),
            "as_made": total_in_order(listed(count(n)).map(slowly)),
        }

    assert await p(4) == {"listed": [0, 2, 4, 6], "ordered": [0, 1, 2, 3], "as_made": [3, 2, 1, 0]}


@stage
async def repeated(n: int) -> str:
    return "n" * n


async def test_a_pipeline_is_part_of_another():
    @pipeline
    def outer(n: int) -> Any:
        return plus(short(n), 1), join(a=shout(repeated(n)), b=n)

    assert await outer(3) == (7, {"a": "NNN", "b": 3})


async def test_inputs_are_checked():
    with pytest.raises(BadRequest, match="`n` is missing; pipeline 'short' takes n"):
        short.start()
    with pytest.raises(BadRequest, match="takes no `m`; valid: n"):
        short.start(n=1, m=2)
    with pytest.raises(BadRequest, match="takes 1 inputs: n"):
        short.start(1, 2)


def test_depths_grow_along_the_longest_way():
    depths = {step.name: depth for step, depth in facts.plan.depths.items()}
    assert depths["write"] == 1
    assert depths["lines"] == 2
    assert depths["ask"] < depths["encode"] < depths["rank"]


async def test_streams_as_inputs():
    @pipeline
    def p(xs: Stream[int], text: str) -> Any:
        return total(xs), shout(text)

    assert await p([1, 2, 3], "a") == (6, "A")
