"""Code that serves many calls at once: what it is given, what it may return, and what each call is told."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from foreserve.calling import Call
from foreserve.core import Finish, Work
from foreserve.engines.python_batched import BatchedPythonEngine
from foreserve.errors import EngineStartError


def works(*args: dict[str, Any], **words: Any) -> list[Work]:
    return [
        Work(id=f"r{n}", payload=Call(args=each, **words), cost={"slots": 1.0}, arrival=0.0)
        for n, each in enumerate(args)
    ]


async def engine(target: Any, **options: Any) -> BatchedPythonEngine:
    made = BatchedPythonEngine(target, **options)
    await made.start()
    return made


async def answers(target: Any, given: list[Work], **options: Any) -> dict[str, tuple[list[Any], Finish]]:
    """Each call's items and its finish."""
    made = await engine(target, **options)
    chunks: dict[str, list[Any]] = {work.id: [] for work in given}
    async for step in made.run_batch(given):
        for chunk in step:
            chunks[chunk.id].append(chunk)
    await made.close()
    for each in chunks.values():
        assert [chunk.index for chunk in each] == list(range(len(each)))
    return {id: ([chunk.data for chunk in each[:-1]], each[-1].finish) for id, each in chunks.items()}


def double(n: list[int]) -> list[int]:
    return [2 * each for each in n]


async def double_later(n: list[int]) -> list[int]:
    await asyncio.sleep(0)
    return [2 * each for each in n]


@pytest.mark.parametrize("target", [double, double_later])
async def test_each_parameter_is_a_list_and_each_call_gets_its_own_result(target: Any):
    found = await answers(target, works({"n": 1}, {"n": 2}, {"n": 3}))
    assert [items for items, _ in found.values()] == [[2], [4], [6]]
    assert {finish.usage["batch"] for _, finish in found.values()} == {3.0}


async def test_a_class_is_made_once_and_serves():
    class Counts:
        made = 0

        def __init__(self) -> None:
            Counts.made += 1

        def __call__(self, n: list[int]) -> list[int]:
            return [len(n)] * len(n)

    found = await answers(Counts, works({"n": 1}, {"n": 2}))
    assert [items for items, _ in found.values()] == [[2], [2]]
    assert Counts.made == 1


async def test_an_array_is_a_list_of_its_rows():
    numpy = pytest.importorskip("numpy")
    found = await answers(lambda n: numpy.array(n) * 2, works({"n": [1, 2]}, {"n": [3, 4]}))
    assert [items for items, _ in found.values()] == [[[2, 4]], [[6, 8]]]


async def test_an_exception_among_the_results_fails_its_call_alone():
    found = await answers(lambda n: [n[0], ValueError("odd")], works({"n": 1}, {"n": 2}))
    assert (found["r0"][0], found["r0"][1].reason) == ([1], "stop")
    assert (found["r1"][0], found["r1"][1].error) == ([], "ValueError: odd")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (lambda n: n[:1], "1 results for 2 calls"),
        (lambda n: {"n": n}, "not dict"),
        (lambda n: 1 / 0, "ZeroDivisionError"),
        (lambda n: "ab", "not str"),
    ],
)
async def test_what_is_no_list_of_results_fails_all_with_words(target: Any, words: str):
    found = await answers(target, works({"n": 1}, {"n": 2}))
    assert {finish.reason for _, finish in found.values()} == {"error"}
    assert all(words in finish.error for _, finish in found.values())


async def exits(n: list[int]) -> None:
    raise SystemExit(3)


async def test_an_exit_ends_its_batch_alone():
    ended = await answers(exits, works({"n": 1}, {"n": 2}))
    assert {finish.error for _, finish in ended.values()} == {"SystemExit: 3"}


async def test_wrong_arguments_cost_their_own_call_alone_and_other_arguments_run_apart():
    batches: list[tuple[list[str], int]] = []

    def seen(n: list[int], m: list[int] | None = None) -> list[int]:
        batches.append(("n" if m is None else "nm", len(n)))
        return n

    found = await answers(seen, works({"n": 1}, {"n": "x"}, {"n": 2, "m": 3}, {"n": 4}, {"o": 1}))
    assert [finish.reason for _, finish in found.values()] == ["stop", "rejected", "stop", "stop", "rejected"]
    assert "`n`: expected int, got str" in found["r1"][1].error
    assert batches == [("n", 2), ("nm", 1)]


async def test_a_call_without_arguments_cannot_be_told_from_none():
    found = await answers(lambda n=None: [1], works({}))
    assert found["r0"][1].reason == "rejected"


async def test_memory_that_runs_out_is_told_and_tried_again_with_fewer():
    def full(n: list[int]) -> list[int]:
        raise MemoryError

    together, alone = await answers(full, works({"n": 1}, {"n": 1})), await answers(full, works({"n": 1}))
    finish = together["r0"][1]
    assert finish.detail == {"retry": "memory"}
    assert "ran out of memory" in finish.error
    assert alone["r0"][1].detail is None


async def test_a_cancelled_call_is_dropped_and_the_others_are_served():
    go, running = threading.Event(), threading.Event()

    def slow(n: list[int]) -> list[int]:
        running.set()
        go.wait(10)
        return n

    made = await engine(slow)
    batch = made.run_batch(works({"n": 1}, {"n": 2}))
    step = asyncio.ensure_future(anext(batch))
    await asyncio.to_thread(running.wait, 10)
    await made.cancel("r1")
    assert (await made.load()).running == 2
    go.set()
    chunks = await step
    assert [(chunk.id, chunk.data) for chunk in chunks if chunk.data] == [("r0", 1)]
    assert chunks[-1].finish.reason == "cancelled"


def spin(n: list[int]) -> list[int]:
    while True:
        pass


async def test_a_batch_that_runs_too_long_ends_and_python_code_is_stopped(caplog):
    made = await engine(spin, timeout_s=0.05)
    fate = asyncio.create_task(made.failed())
    for _ in range(2):
        steps = [step async for step in made.run_batch(works({"n": 1}, {"n": 2}))]
        assert [chunk.finish.error for chunk in steps[0]] == ["the call ran longer than its `timeout_s`, 0.05 s"] * 2
    assert caplog.text.count("r0, r1: the call ran longer than its `timeout_s`, 0.05 s") == 2
    assert not fate.done()
    fate.cancel()
    await made.close()


async def test_code_that_cannot_be_stopped_fails_the_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("foreserve.engines.python_batched.STOP_S", 0.05)
    go = threading.Event()
    made = await engine(lambda n: go.wait(10) and n, timeout_s=0.05)
    try:
        steps = [step async for step in made.run_batch(works({"n": 1}))]
        assert steps[0][0].finish.reason == "error"
        assert "did not end" in await asyncio.wait_for(made.failed(), 5)
    finally:
        go.set()


def yields(n: list[int]):
    yield n


async def test_a_generator_runs_no_batches():
    with pytest.raises(EngineStartError, match="generator"):
        await engine(yields)
