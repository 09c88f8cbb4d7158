import asyncio

import pytest

from foreserve.core import Work
from foreserve.engines.simulated import SimulatedEngine
from foreserve.simulation import clock
from tests.engines.contract import work

# Whole tenths and hundredths that a float sum would blur are compared with this tolerance.
CLOSE = pytest.approx


def times(engine, *arrivals):
    """Runs (arrival, work) pairs on a virtual clock. Returns for each (time, tokens) of its chunks."""
    seen = {each.id: [] for _, each in arrivals}

    async def one(arrival, each):
        await asyncio.sleep(arrival)
        async for chunk in engine.run(each):
            seen[chunk.id].append((asyncio.get_running_loop().time(), len(chunk.data.ids) if chunk.data else 0))

    async def main():
        await engine.start()
        await asyncio.gather(*(one(*pair) for pair in arrivals))
        await engine.close()

    clock.run(main())
    return seen


def engine(**options):
    return SimulatedEngine(**{"prefill_s_per_token": 0.01, "decode_s": 0.1, "decode_s_per_seq": 0.05, **options})


def test_one_request_costs_its_prefill_and_a_step_for_each_later_token():
    seen = times(engine(), (0.0, work("a", output=5, prompt=[1] * 10)))
    assert seen["a"] == [CLOSE((0.1, 1)), CLOSE((0.5, 4))]


def test_two_requests_share_steps_that_cost_more():
    seen = times(engine(), (0.0, work("a", output=3, prompt=[1] * 10)), (0.0, work("b", output=3, prompt=[1] * 10)))
    # Prefills one after the other, then two steps of 0.15 s for both.
    assert seen["a"] == [CLOSE((0.1, 1)), CLOSE((0.5, 2))]
    assert seen["b"] == [CLOSE((0.2, 1)), CLOSE((0.5, 2))]


def test_a_newcomer_waits_for_the_step_that_runs_and_holds_decoding_up():
    seen = times(engine(), (0.0, work("a", output=5, prompt=[1] * 10)), (0.25, work("b", output=1, prompt=[1] * 20)))
    assert seen["b"] == [CLOSE((0.5, 1))]  # step boundary at 0.3, prefill of 0.2
    assert seen["a"][-1] == CLOSE((0.7, 4))


def test_chunks_come_as_often_as_asked():
    seen = times(engine(emit_every=2), (0.0, work("a", output=6, prompt=[1] * 10)))
    assert [tokens for _, tokens in seen["a"]] == [1, 2, 2, 1]
    assert [at for at, _ in seen["a"]] == [CLOSE(0.1), CLOSE(0.3), CLOSE(0.5), CLOSE(0.6)]


def test_a_static_batch_costs_its_longest_prompt_and_output():
    static = engine(batching="static")
    works = [work("a", output=2, prompt=[1] * 10), work("b", output=5, prompt=[1] * 20)]
    turns = []

    async def main():
        await static.start()
        async for chunks in static.run_batch(works):
            ends = [(chunk.id, chunk.finish is not None) for chunk in chunks]
            turns.append((asyncio.get_running_loop().time(), ends))

    clock.run(main())
    assert turns == [
        (CLOSE(0.4), [("a", False), ("b", False)]),
        (CLOSE(0.55), [("a", True)]),
        (CLOSE(1.0), [("b", True)]),
    ]


def test_who_does_not_fit_the_kv_cache_waits_in_order():
    small = engine(kv_tokens=40)
    seen = times(small, *((0.0, work(id, output=10, prompt=[1] * 20)) for id in "abc"))
    ends = [seen[id][-1][0] for id in "abc"]
    assert ends == [CLOSE(1.1), CLOSE(2.2), CLOSE(3.3)]


def test_output_lengths_are_drawn_by_seed_and_id_alone():
    works = [work(f"r{i}", output=100, prompt=[1], ignore_eos=False) for i in range(30)]

    def lengths(seed, order):
        seen = times(engine(seed=seed, output_tokens=(3, 9), slots=3), *((0.0, each) for each in order))
        return {id: sum(tokens for _, tokens in chunks) for id, chunks in sorted(seen.items())}

    assert lengths(1, works) == lengths(1, works[::-1])
    assert lengths(1, works) != lengths(2, works)
    assert set(lengths(1, works).values()) == set(range(3, 10))


def test_a_drawn_length_ends_with_stop_and_max_tokens_with_length():
    async def main():
        drawing = engine(output_tokens=(5, 5))
        await drawing.start()
        reasons = []
        for max_tokens in (5, 6):
            chunks = [chunk async for chunk in drawing.run(work(f"r{max_tokens}", max_tokens, ignore_eos=False))]
            reasons.append(chunks[-1].finish.reason)
        return reasons

    assert clock.run(main()) == ["length", "stop"]


def test_days_of_requests_take_the_same_course_twice():
    def course():
        pairs = [(i * 37.7 % 86_400, work(f"r{i}", output=1 + i * 7 % 50)) for i in range(2_000)]
        return times(engine(slots=8), *pairs)

    assert course() == course()


@pytest.mark.parametrize("batching", ["continuous", "static"])
def test_work_of_another_kind_holds_a_slot_for_its_seconds(batching):
    async def main():
        plain = SimulatedEngine(batching=batching)
        await plain.start()
        loop = asyncio.get_running_loop()
        each = Work(id="a", payload={"seconds": 2.5}, cost={}, arrival=0.0)
        chunks = [chunk async for chunk in plain.run(each)]
        ended = loop.time()
        loop.call_later(1.0, lambda: asyncio.ensure_future(plain.cancel("a")))
        cancelled = [chunk async for chunk in plain.run(each)]
        return chunks[-1].finish, ended, cancelled[-1].finish.reason, loop.time() - ended

    finish, ended, reason, after = clock.run(main())
    assert (finish.reason, finish.usage, ended) == ("stop", {"seconds": 2.5}, 2.5)
    assert (reason, after) == ("cancelled", 1.0)


def test_plain_values_of_another_process_are_understood():
    async def main():
        plain = SimulatedEngine()
        await plain.start()
        payload = {"prompt": [1, 2], "max_tokens": 3}
        return [chunk async for chunk in plain.run(Work(id="a", payload=payload, cost={}, arrival=0.0))]

    assert clock.run(main())[-1].finish.usage == {"prompt_tokens": 2.0, "output_tokens": 3.0}


def test_start_takes_its_time():
    async def main():
        await SimulatedEngine(start_s=12.0).start()
        return asyncio.get_running_loop().time()

    assert clock.run(main()) == 12.0


@pytest.mark.parametrize(
    "options", [{"batching": "dynamic"}, {"slots": 0}, {"decode_s": -1}, {"output_tokens": (5, 3)}, {"emit_every": 0}]
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options)) if "decode_s" not in options else "negative"):
        SimulatedEngine(**options)


def test_a_token_by_itself_costs_nothing():
    """A request of many tokens puts out two chunks, and wakes the loop as rarely."""
    seen = times(engine(context_tokens=10**6, kv_tokens=10**6), (0.0, work("a", output=500_000)))
    assert len(seen["a"]) == 2
