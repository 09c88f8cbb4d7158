from __future__ import annotations

import asyncio

import msgspec
import pytest

from foreserve.calling import Call, Items
from foreserve.core import Chunk, Work
from foreserve.engines import python_fed
from foreserve.engines.python import PythonEngine
from foreserve.engines.python_fed import Fed, Feeding
from foreserve.pipelines.stream import Stream


async def total(xs: Stream[int], start: int = 0) -> int:
    return start + sum([x async for x in xs])


async def run(engine: PythonEngine, work: Work) -> list[Chunk]:
    return [chunk async for chunk in engine.run(work)]


def work(**words: object) -> Work:
    return Work(id="a", payload=msgspec.to_builtins(Call(**words)), cost={}, arrival=0.0)  # type: ignore[arg-type]


async def test_items_come_before_and_while_a_call_runs():
    engine = PythonEngine(total)
    await engine.start()
    engine.feed("a", {"name": "xs", "items": [1, 2]}, False)
    running = asyncio.ensure_future(run(engine, work(args={"start": 10}, fed=("xs",))))
    await asyncio.sleep(0.01)
    engine.feed("a", Items(name="xs", items=[3]), False)
    engine.feed("a", Items(name="xs", last=True), True)
    chunks = await asyncio.wait_for(running, 5)
    assert [chunk.data for chunk in chunks if chunk.data is not None] == [16]


async def test_a_list_stands_for_a_stream():
    engine = PythonEngine(total)
    await engine.start()
    chunks = await run(engine, work(args={"xs": [1, 2]}))
    assert chunks[0].data == 3
    (refused,) = await run(engine, work(args={"xs": ["a"]}))
    assert refused.finish is not None
    assert "`xs[0]`: expected int, got str" in (refused.finish.error or "")


async def test_what_is_over_stays_over():
    fed = Fed.of([1])
    assert await fed.to_list() == [1]
    with pytest.raises(StopAsyncIteration):
        await anext(fed)


def test_items_for_calls_that_have_ended_are_kept_for_few(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(python_fed, "MOST", 2)
    feeding = Feeding()
    for number in range(5):
        feeding.take(f"{number}", Items(name="xs", items=[number]))
    assert list(feeding._fed) == ["3", "4"]
    feeding.end("3")
    feeding.end("unknown")
    assert list(feeding._fed) == ["4"]
    with pytest.raises(msgspec.ValidationError):
        feeding.take("4", {"items": [1]})
