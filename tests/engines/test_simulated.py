import asyncio
import random

import msgspec
import pytest

from foreserve.core import Work
from foreserve.engines.profile import DecodeTable, EngineProfile, PrefillTable, linear
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


@pytest.mark.parametrize("batching", ["continuous", "static"])
def test_tokens_of_several_moments_that_are_handed_on_at_once_count_up(batching):
    core = engine(batching=batching, emit_every=1).core
    chunks = [*core.run([work("a", output=6, prompt=[1] * 10)], 0.0), *core.advance(1e3)]
    assert [token for chunk in chunks for token in chunk.data.ids] == [*range(10, 16)]


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


def test_a_full_kv_cache_preempts_the_newest_which_is_computed_again_and_loses_nothing():
    small = engine(kv_tokens=60, emit_every=4)
    seen = times(small, *((0.0, work(id, output=20, prompt=[1] * 20)) for id in "ab"))
    # Both join at 21 tokens, b a prefill later, and fill 60 after nine steps of 0.15 s: b gives way, waits for a's last
    # ten steps of 0.1 s, and is prefilled with the ten tokens that it has made, which makes the eleventh.
    assert small.preemptions == 1
    assert seen["a"][-1] == CLOSE((0.4 + 9 * 0.15 + 10 * 0.1, 3))
    assert seen["b"][-1] == CLOSE((2.75 + 0.3 + 9 * 0.1, 3))
    assert [sum(tokens for _, tokens in seen[id]) for id in "ab"] == [20, 20]


def test_preempted_ones_come_back_in_their_order_and_can_be_cancelled():
    small = engine(kv_tokens=64, slots=4)
    chunks = {id: [] for id in "abcd"}

    async def main():
        await small.start()

        async def one(id):
            async for chunk in small.run(work(id, output=40, prompt=[1] * 8)):
                chunks[id].append(chunk)

        tasks = [asyncio.create_task(one(id)) for id in "abcd"]
        while small.preemptions < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert [sequence.id for sequence in small.core._steps.waiting] == ["c", "d"]
        assert 0.6 < (await small.load()).kv_fraction <= 1.0
        await small.cancel("c")
        await asyncio.gather(*tasks)
        assert (await small.load()).kv_fraction == 0.0

    clock.run(main())
    assert {id: said[-1].finish.reason for id, said in chunks.items()} == {
        "a": "length", "b": "length", "c": "cancelled", "d": "length",
    }  # fmt: skip
    for id in "abd":
        assert [token for chunk in chunks[id] if chunk.data for token in chunk.data.ids] == list(range(8, 48))


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_lengths_every_answer_is_whole_and_the_kv_cache_is_never_exceeded(seed):
    draw = random.Random(seed)
    small = engine(kv_tokens=draw.randint(100, 200), slots=draw.randint(6, 12), emit_every=draw.choice([None, 1, 7]))
    works = [work(f"r{i}", output=draw.randint(1, 60), prompt=[1] * draw.randint(1, 40)) for i in range(60)]
    most = 0

    async def main():
        nonlocal most
        await small.start()

        async def watch():
            nonlocal most
            while True:
                most = max(most, (await small.load()).kv_fraction)
                await asyncio.sleep(0.05)

        async def one(each):
            await asyncio.sleep(draw.uniform(0, 20))
            return [chunk async for chunk in small.run(each)]

        watching = asyncio.create_task(watch())
        answers = await asyncio.gather(*(one(each) for each in works))
        watching.cancel()
        return answers

    for each, chunks in zip(works, clock.run(main()), strict=True):
        start = len(each.payload.prompt)
        ids = [token for chunk in chunks if chunk.data for token in chunk.data.ids]
        assert ids == list(range(start, start + each.payload.max_tokens))
        assert chunks[-1].finish.reason == "length"
    assert most <= 1.0
    assert small.preemptions > 0


def test_a_static_batch_that_outgrows_the_kv_cache_ends_with_an_error_that_may_be_retried():
    static = engine(batching="static", kv_tokens=100)
    works = [work("a", output=40, prompt=[1] * 30), work("b", output=2, prompt=[1] * 10)]

    async def main(batch):
        await static.start()
        chunks = {each.id: [] for each in batch}
        async for turn in static.run_batch(batch):
            for chunk in turn:
                chunks[chunk.id].append(chunk)
        return chunks

    chunks = clock.run(main(works))
    assert chunks["b"][-1].finish.reason == "length"
    finish = chunks["a"][-1].finish
    assert (finish.reason, finish.detail) == ("error", {"retry": "memory"})
    # 2 * (30 + 20) is all there is.
    assert finish.usage["output_tokens"] == sum(len(chunk.data.ids) for chunk in chunks["a"] if chunk.data) == 20
    alone = clock.run(main([works[0]]))["a"]
    assert alone[-1].finish.reason == "length"


def test_prompts_that_do_not_fit_together_end_before_their_first_token():
    async def main():
        static = engine(batching="static", kv_tokens=100)
        await static.start()
        works = [work(id, output=5, prompt=[1] * 50) for id in "ab"]
        return [chunk async for turn in static.run_batch(works) async for chunk in _each(turn)]

    async def _each(turn):
        for chunk in turn:
            yield chunk

    chunks = clock.run(main())
    assert [(chunk.id, chunk.data, chunk.finish.detail) for chunk in chunks] == [
        (id, None, {"retry": "memory"}) for id in "ab"
    ]


def test_an_answer_that_is_continued_goes_on_as_it_would_have():
    async def main():
        drawing = engine(output_tokens=(20, 40), emit_every=1)
        await drawing.start()

        async def ids(**terms):
            chunks = [chunk async for chunk in drawing.run(work("r", 60, ignore_eos=False, **terms))]
            assert chunks[-1].finish.reason == "stop"
            return [token for chunk in chunks if chunk.data for token in chunk.data.ids]

        whole = await ids(prompt=[1] * 10)
        rest = await ids(prompt=[1] * 10 + whole[:7], continued=7)
        assert whole[:7] + rest == whole

    clock.run(main())


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


def test_a_prompt_that_was_there_before_costs_less_and_tells_so():
    profile = msgspec.structs.replace(linear(prefill_s_per_token=0.01), prefix_caching=True, block_tokens=4)

    async def main():
        caching = SimulatedEngine(profile=profile)
        await caching.start()
        ends = []
        for id, prompt in (("a", [*range(40)]), ("b", [*range(40)]), ("c", [*range(20), *range(20)])):
            began = asyncio.get_running_loop().time()
            chunks = [chunk async for chunk in caching.run(work(id, output=1, prompt=prompt))]
            ends.append((asyncio.get_running_loop().time() - began, chunks[-1].finish.usage["cached_tokens"]))
        return ends, (await caching.load()).cached_tokens

    ends, hits = clock.run(main())
    assert ends == [CLOSE((0.4, 0.0)), CLOSE((0.08, 32.0)), CLOSE((0.24, 16.0))]  # parts of 16 tokens
    assert hits == 48


def test_a_static_batch_reads_the_profiles_tables():
    profile = EngineProfile(
        batching="static",
        slots=4,
        kv_tokens=4096,
        context_tokens=4096,
        prefill=PrefillTable(tokens=[0, 100], before=[0], seconds=[[0.0], [1.0]]),
        decode=DecodeTable(sequences=[1, 2], context=[0, 100], seconds=[[0.1, 0.2], [0.2, 0.3]]),
    )

    async def main():
        static = SimulatedEngine(profile=profile)
        await static.start()
        works = [work("a", output=3, prompt=[1] * 10), work("b", output=2, prompt=[1] * 20)]
        return [
            (asyncio.get_running_loop().time(), [chunk.id for chunk in chunks])
            async for chunks in static.run_batch(works)
        ]

    # Two places of 20 tokens; then steps of two with a padded context of 21 and 22 tokens.
    assert clock.run(main()) == [
        (CLOSE(0.4), ["a", "b"]),
        (CLOSE(0.4 + 0.221), ["b"]),
        (CLOSE(0.4 + 0.221 + 0.222), ["a"]),
    ]
