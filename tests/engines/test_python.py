import asyncio
import contextvars
import logging
import threading

import pytest

from foreserve.core import Work
from foreserve.engines.python import PythonEngine
from foreserve.errors import EngineStartError
from foreserve.simulation import clock

tenant = contextvars.ContextVar("tenant", default="nobody")


def call(id="a", **args):
    return Work(id=id, payload={"args": args}, cost={"slots": 1.0}, arrival=0.0)


async def engine(target, **options):
    made = PythonEngine(target, **options)
    await made.start()
    return made


async def outcome(target, **args):
    """The items and the finish of one call."""
    made = await engine(target)
    chunks = [chunk async for chunk in made.run(call(**args))]
    await made.close()
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert all(chunk.finish is None for chunk in chunks[:-1])
    assert chunks[-1].data is None
    return [chunk.data for chunk in chunks[:-1]], chunks[-1].finish


def add(a, b=1):
    return a + b


async def add_later(a, b=1):
    await asyncio.sleep(0)
    return a + b


def count(n):
    yield from range(n)


async def count_later(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


@pytest.mark.parametrize(
    ("target", "args", "items"),
    [
        (add, {"a": 2}, [3]),
        (add_later, {"a": 2, "b": 5}, [7]),
        (count, {"n": 3}, [0, 1, 2]),
        (count_later, {"n": 3}, [0, 1, 2]),
        (count, {"n": 0}, []),
        (lambda: None, {}, [None]),
        (lambda: count(2), {}, [0, 1]),
        (lambda: add_later(1), {}, [2]),
    ],
)
async def test_every_kind_of_function_gives_its_items(target, args, items):
    given, finish = await outcome(target, **args)
    assert given == items
    assert finish.reason == "stop"
    assert finish.usage["items"] == len(items)


@pytest.mark.parametrize("target", [add, add_later, count, count_later])
async def test_wrong_arguments_are_rejected_before_the_call(target):
    items, finish = await outcome(target, x=1)
    assert items == []
    assert finish.reason == "rejected"
    assert "argument" in finish.error


async def test_arguments_that_are_no_mapping_are_rejected():
    made = await engine(add)
    chunks = [chunk async for chunk in made.run(Work(id="a", payload={"args": [1]}, cost={}, arrival=0.0))]
    assert chunks[-1].finish.reason == "rejected"


async def fail_later():
    raise ValueError("no such thing")


def fail_after_one():
    yield 1
    raise ValueError("no such thing")


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("target", "items"), [(lambda: fail(ValueError("no such thing")), []), (fail_later, []), (fail_after_one, [1])]
)
async def test_an_exception_is_an_error_in_words_and_its_traceback_is_logged(target, items, caplog):
    with caplog.at_level(logging.ERROR):
        given, finish = await outcome(target)
    assert given == items
    assert (finish.reason, finish.error) == ("error", "ValueError: no such thing")
    assert "Traceback" in caplog.text


async def yields_and_fails(error):
    yield 1
    raise error


async def fails_later(error):
    await asyncio.sleep(0)
    raise error


@pytest.mark.parametrize("how", [fail, fails_later, yields_and_fails])
@pytest.mark.parametrize("error", [StopIteration(1), KeyboardInterrupt(), SystemExit(3)])
async def test_exceptions_that_mean_something_to_python_end_only_the_call(how, error):
    _, finish = await outcome(lambda: how(error))
    assert finish.reason == "error"
    assert type(error).__name__ in finish.error  # of a coroutine StopIteration is told as RuntimeError


async def test_results_that_cannot_be_sent_are_errors_and_arrays_become_lists():
    numpy = pytest.importorskip("numpy")
    _, finish = await outcome(object)
    assert finish.reason == "error"
    assert "object" in finish.error
    items, _ = await outcome(lambda: {"scores": numpy.arange(3), "best": numpy.float32(0.5), "raw": b"\x00"})
    assert items == [{"scores": [0, 1, 2], "best": 0.5, "raw": b"\x00"}]


async def test_context_variables_reach_the_function_and_hold_from_item_to_item():
    def items():
        tenant.set(tenant.get() + "!")
        yield tenant.get()
        yield tenant.get()

    async def later():
        return tenant.get()

    tenant.set("acme")
    assert (await outcome(items))[0] == ["acme!", "acme!"]
    assert (await outcome(later))[0] == ["acme"]
    assert tenant.get() == "acme"


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_an_item_is_made_only_when_it_is_asked_for(kind):
    made = []

    def sync():
        for i in range(10):
            made.append(i)
            yield i

    async def later():
        for i in range(10):
            made.append(i)
            yield i

    run = (await engine(sync if kind == "sync" else later)).run(call())
    await anext(run)
    await anext(run)
    await asyncio.sleep(0.02)
    assert made == [0, 1]
    await run.aclose()


@pytest.mark.parametrize("how", ["cancel", "leave"])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_generator_is_closed_when_it_is_not_wanted_any_more(kind, how):
    closed = threading.Event()

    def sync():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    async def later():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    made = await engine(sync if kind == "sync" else later)
    run = made.run(call())
    await anext(run)
    if how == "cancel":
        await made.cancel("a")
        assert (await anext(run)).finish.reason == "cancelled"
    await run.aclose()
    assert closed.is_set()
    assert (await made.load()).running == 0


async def test_an_async_function_is_cancelled():
    cancelled = asyncio.Event()

    async def forever():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    made = await engine(forever)
    answer = asyncio.create_task(anext(made.run(call())))
    await asyncio.sleep(0.01)
    await made.cancel("a")
    assert (await answer).finish.reason == "cancelled"
    assert cancelled.is_set()


async def test_a_plain_function_that_is_cancelled_runs_on_and_its_slot_comes_back_when_it_ends():
    go, running = threading.Event(), threading.Event()

    def stuck():
        running.set()
        go.wait(10)
        return "late"

    made = await engine(stuck)
    answer = asyncio.create_task(anext(made.run(call())))
    await asyncio.to_thread(running.wait, 10)
    await made.cancel("a")
    await asyncio.sleep(0.02)
    assert not answer.done()
    assert (await made.load()).running == 1
    go.set()
    chunk = await answer
    assert (chunk.data, chunk.finish.reason) == (None, "cancelled")


async def test_a_call_whose_reader_is_gone_is_counted_until_its_thread_ends():
    go, running = threading.Event(), threading.Event()

    def stuck():
        running.set()
        go.wait(10)

    made = await engine(stuck)
    answer = asyncio.create_task(anext(made.run(call())))
    await asyncio.to_thread(running.wait, 10)
    answer.cancel()
    await asyncio.gather(answer, return_exceptions=True)
    assert (await made.load()).running == 1
    go.set()
    async with asyncio.timeout(10):
        while (await made.load()).running:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def abandoned(made, id, running):
    """A call whose function blocks and whose reader has left."""
    running.clear()
    answer = asyncio.create_task(anext(made.run(call(id, stuck=True))))
    await asyncio.to_thread(running.wait, 10)
    await made.cancel(id)
    answer.cancel()
    await asyncio.gather(answer, return_exceptions=True)


async def test_nobody_waits_behind_an_abandoned_thread_and_when_all_are_abandoned_the_engine_has_failed():
    go, running = threading.Event(), threading.Event()

    def block(stuck=False):
        running.set()
        return go.wait(20) if stuck else "fine"

    made = await engine(block, max_running=2)
    fate = asyncio.create_task(made.failed())
    try:
        await abandoned(made, "first", running)
        async with asyncio.timeout(10):
            answers = await asyncio.gather(anext(made.run(call("b"))), anext(made.run(call("c"))))
        assert [answer.data for answer in answers] == ["fine", "fine"]
        assert not fate.done()
        await abandoned(made, "second", running)
        assert "2 calls did not end when they were told to" in await asyncio.wait_for(fate, 10)
        assert (await anext(made.run(call("late")))).finish.reason == "error"
    finally:
        go.set()
        fate.cancel()


async def test_a_thread_that_ends_late_is_not_held_against_the_engine():
    go, running = threading.Event(), threading.Event()

    def block(stuck=False):
        running.set()
        return go.wait(20) if stuck else "fine"

    made = await engine(block, max_running=2)
    fate = asyncio.create_task(made.failed())
    for id in "abc":
        go.clear()
        await abandoned(made, id, running)
        go.set()
        async with asyncio.timeout(10):
            while (await made.load()).running:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    answers = await asyncio.gather(*(anext(made.run(call(id))) for id in "de"))
    assert [answer.data for answer in answers] == ["fine", "fine"]
    assert not fate.done()
    fate.cancel()


async def test_abandoned_threads_do_not_let_more_run_side_by_side_than_was_said():
    go, running, lock = threading.Event(), threading.Event(), threading.Lock()
    now, most = 0, 0

    def count(stuck=False):
        nonlocal now, most
        running.set()
        if stuck:
            return go.wait(20)
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.02)
        with lock:
            now -= 1
        return None

    made = await engine(count, max_running=2)
    await abandoned(made, "stuck", running)
    await asyncio.gather(*(anext(made.run(call(f"r{i}"))) for i in range(8)))
    go.set()
    assert most == 2


async def test_calls_run_side_by_side_in_a_bounded_pool():
    together = threading.Barrier(3)

    def meet():
        return together.wait(10)

    made = await engine(meet, max_running=3)

    async def one(id):
        first, *_ = [chunk async for chunk in made.run(call(id))]
        return first.data

    assert sorted(await asyncio.gather(*(one(f"r{i}") for i in range(3)))) == [0, 1, 2]
    await made.close()


async def test_timeouts_of_async_generators_may_span_items():
    async def items():
        async with asyncio.timeout(30):
            yield 1
            yield 2

    assert (await outcome(items))[0] == [1, 2]


def test_functions_run_on_a_virtual_clock():
    async def slow(n):
        for i in range(n):
            await asyncio.sleep(3600)
            yield i

    async def main():
        return await outcome(slow, n=5), await outcome(add, a=1), asyncio.get_running_loop().time()

    (items, finish), (added, _), now = clock.run(main())
    assert (items, finish.usage["seconds"], added, now) == ([0, 1, 2, 3, 4], 5 * 3600, [2], 5 * 3600)


async def test_targets_are_found_in_files_and_modules(tmp_path):
    (tmp_path / "helper_of_shop.py").write_text("FACTOR = 3\n")
    (tmp_path / "shop.py").write_text(
        "from helper_of_shop import FACTOR\n\ndef price(n: int):\n    return n * FACTOR\n\nLABEL = 'shop'\n"
    )
    assert (await outcome(f"{tmp_path / 'shop.py'}:price", n=2))[0] == [6]
    assert (await outcome("operator:neg"))[1].reason == "rejected"
    info = await PythonEngine(f"{tmp_path / 'shop.py'}:price", max_running=2).start()
    assert info.capacity == {"slots": 2.0}
    assert (info.facts["streams"], info.facts["parameters"]) == (False, ["n"])
    assert info.facts["takes"] == ({"name": "n", "takes": "value", "required": True, "words": "int"},)
    for target, words in [
        (f"{tmp_path / 'shop.py'}:prize", "did you mean 'price'"),
        (f"{tmp_path / 'shop.py'}:LABEL", "is a str, not a class or function"),
        (f"{tmp_path / 'none.py'}:price", "no such file"),
        ("no_such_module_here:x", "the package 'no_such_module_here' is not installed"),
        ("nothing", "valid:"),
    ]:
        with pytest.raises(EngineStartError, match=words):
            await PythonEngine(target).start()


async def test_a_module_that_fails_is_told_with_its_error(tmp_path):
    (tmp_path / "broken_shop.py").write_text("1 / 0\n")
    with pytest.raises(EngineStartError, match="ZeroDivisionError"):
        await PythonEngine(f"{tmp_path / 'broken_shop.py'}:price").start()


def endless():
    while True:
        pass


async def endless_later():
    await asyncio.Event().wait()


def endless_after_one():
    yield 1
    endless()


@pytest.mark.parametrize(("target", "items"), [(endless, []), (endless_later, []), (endless_after_one, [1])])
async def test_a_call_that_runs_too_long_ends_in_words_and_its_code_is_stopped(target, items, caplog):
    made = await engine(target, max_running=1, timeout_s=0.05)
    fate = asyncio.create_task(made.failed())
    for _ in range(3):  # with one thread: the next could not begin behind code that was not stopped
        chunks = [chunk async for chunk in made.run(call())]
        assert [chunk.data for chunk in chunks[:-1]] == items
        assert chunks[-1].finish.error == "the call ran longer than its `timeout_s`, 0.05 s"
    assert caplog.text.count("request a: the call ran longer than its `timeout_s`, 0.05 s") == 3
    assert not fate.done()
    assert (await made.load()).running == 0
    fate.cancel()
    await made.close()


async def test_the_time_in_which_nobody_asks_for_an_item_is_not_the_calls():
    made = await engine(count, timeout_s=0.2)
    run = made.run(call(n=2))
    await anext(run)
    await asyncio.sleep(0.3)
    assert [chunk.finish and chunk.finish.reason async for chunk in run] == [None, "stop"]


async def test_code_that_cannot_be_stopped_costs_its_thread_and_at_last_the_process(monkeypatch):
    monkeypatch.setattr("foreserve.engines.python.STOP_S", 0.02)
    go = threading.Event()

    def block(stuck=True):
        return go.wait(20) if stuck else "fine"

    made = await engine(block, max_running=2, timeout_s=0.05)
    fate = asyncio.create_task(made.failed())
    try:
        assert [chunk.finish.reason async for chunk in made.run(call("a"))] == ["error"]
        assert [chunk.data async for chunk in made.run(call("b", stuck=False))] == ["fine", None]
        assert not fate.done()
        assert [chunk.finish.reason async for chunk in made.run(call("c"))] == ["error"]
        assert "2 calls did not end when they were told to" in await asyncio.wait_for(fate, 10)
    finally:
        go.set()


async def ended(made):
    while True:
        if not (await made.load()).running:
            return
        await asyncio.sleep(0.01)


async def test_async_code_that_does_not_end_when_it_is_told_to_holds_up_nobody(monkeypatch):
    monkeypatch.setattr("foreserve.engines.python.STOP_S", 0.02)
    monkeypatch.setattr("foreserve.engines.python_items.STOP_S", 0.02)
    go = asyncio.Event()

    async def deaf(stuck=True):
        while stuck and not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                pass
        yield "fine"

    made = await engine(deaf, max_running=2, timeout_s=0.05)
    fate = asyncio.create_task(made.failed())
    try:
        async with asyncio.timeout(10):
            chunks = [chunk async for chunk in made.run(call("a"))]
            assert chunks[-1].finish.error == "the call ran longer than its `timeout_s`, 0.05 s"
            assert (await made.load()).running == 1  # it takes up its slot until it ends
            assert [chunk.data async for chunk in made.run(call("b", stuck=False))] == ["fine", None]
            assert not fate.done()
            assert [chunk.finish.reason async for chunk in made.run(call("c"))] == ["error"]
            assert "2 calls did not end when they were told to" in await fate
            go.set()
            await ended(made)
    finally:
        go.set()


class Greeter:
    def __init__(self, weights="none"):
        self.weights = weights

    def __call__(self, name: str):
        return f"{name}: {self.weights}"


class Counter:
    async def __call__(self, n: int):
        for i in range(n):
            yield i


class Broken:
    def __init__(self):
        raise RuntimeError("no disk")


@pytest.mark.parametrize(
    ("target", "args", "items"), [(Greeter, {"name": "a"}, ["a: none"]), (Counter, {"n": 2}, [0, 1])]
)
async def test_a_class_is_made_and_its_object_called(target, args, items):
    assert (await outcome(target, **args))[0] == items
    info = await PythonEngine(target).start()
    assert info.facts["streams"] == (target is Counter)


async def test_a_class_is_made_with_the_weights_that_it_asks_for(monkeypatch):
    monkeypatch.setattr("foreserve.engines.python_code._weights", lambda names: names)
    assert (await outcome_with(Greeter, "weights", name="a")) == ["a: weights"]
    assert (await outcome_with(Greeter, ["x", "y"], name="a")) == ["a: ['x', 'y']"]
    assert (await outcome_with(Counter, "weights", n=1)) == [0]


async def outcome_with(target, weights, **args):
    made = await engine(target, weights=weights)
    return [chunk.data async for chunk in made.run(call(**args)) if chunk.finish is None]


async def test_a_class_that_cannot_be_made_is_told_with_why():
    with pytest.raises(EngineStartError, match=r"Broken\(…\) raised RuntimeError: no disk"):
        await PythonEngine(Broken).start()


async def test_memory_that_runs_out_is_told_as_that():
    _, finish = await outcome(lambda: bytearray(1 << 60))
    assert finish.error == "the call ran out of memory (MemoryError)"
