import asyncio
import logging

import pytest

from foreserve.core import Work
from foreserve.engines.transformers import TransformersEngine
from foreserve.errors import EngineStartError
from tests.engines.contract import Subject, work


@pytest.fixture
async def subject(tiny_llama):
    engine = TransformersEngine(model_path=str(tiny_llama), max_running=4, threads=1, weights="f32")
    yield Subject(engine, await engine.start())
    await engine.close()


async def test_rows_are_those_of_generate_alone(subject, tiny_llama):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    prompts = [[5, 6, 7], [9], [3] * 20]
    answers = await subject.run(*(work(f"r{i}", output=10, prompt=prompt) for i, prompt in enumerate(prompts)))
    for prompt, answer in zip(prompts, answers, strict=True):
        alone = model.generate(
            torch.tensor([prompt]), max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        assert answer.ids == alone[0, len(prompt) :].tolist()


async def test_a_seeded_row_is_the_same_in_whatever_batch(subject):
    seeded = {"temperature": 1.0, "seed": 11, "output": 12}
    (alone,) = await subject.run(work("a", **seeded))
    others = [work(f"o{i}", output=3 + i, temperature=2.0, prompt=[4] * (9 + i)) for i in range(2)]
    *_, among = await subject.run(*others, work("b", **seeded))
    assert among.ids == alone.ids


async def test_a_row_that_ended_gets_no_more_chunks(subject):
    short, long = await subject.run(work("short", output=2), work("long", output=20))
    assert len(short.chunks) == 2
    assert len(long.chunks) == 20


async def test_rivals_come_with_their_log_probabilities(subject):
    (answer,) = await subject.run(work("a", output=3, logprobs=4))
    for chunk in answer.chunks:
        (top,) = chunk.data.top
        assert len(top) == 4
        assert top[0] == (chunk.data.ids[0], chunk.data.logprobs[0])


async def test_out_of_memory_ends_each_row_with_an_error_and_the_engine_goes_on(subject, monkeypatch, caplog):
    def no_memory(**_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(subject.engine._model, "forward", no_memory)
        answers = await subject.run(work("a"), work("b"))
        (alone,) = await subject.run(work("alone"))
    assert [(answer.reason, answer.finish.error) for answer in answers] == [("error", "out of memory")] * 2
    assert [answer.finish.detail for answer in (*answers, alone)] == [{"retry": "memory"}, {"retry": "memory"}, None]
    (after,) = await subject.run(work("c"))
    assert after.reason == "length"


async def test_a_failure_in_the_middle_ends_the_rows_that_had_not_ended(subject, monkeypatch, caplog):
    real = subject.engine._model.forward
    calls = []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise ValueError("lost a layer")
        return real(*args, **kwargs)

    monkeypatch.setattr(subject.engine._model, "forward", failing)
    short, long = await subject.run(work("short", output=2), work("long", output=9))
    assert short.reason == "length"
    assert (long.reason, long.finish.error) == ("error", "ValueError: lost a layer")
    assert long.finish.usage["output_tokens"] == len(long.ids) == 3


async def test_what_it_lacks_is_rejected(subject):
    schema, rivals = await subject.run(work("a", json_schema="{}"), work("b", logprobs=65))
    assert schema.reason == rivals.reason == "rejected"


async def test_more_rows_than_a_batch_holds_are_all_rejected(subject):
    answers = await subject.run(*(work(f"r{i}") for i in range(5)))
    assert {answer.reason for answer in answers} == {"rejected"}


async def test_cancelling_every_row_ends_the_batch_early(subject):
    running = asyncio.create_task(subject.run(work("a", output=100), work("b", output=100)))
    await subject.begun("a")
    await asyncio.gather(subject.engine.cancel("a"), subject.engine.cancel("b"))
    answers = await running
    assert {answer.reason for answer in answers} == {"cancelled"}


async def test_run_is_a_batch_of_one(subject):
    each: Work = work("a", output=3)
    chunks = [chunk async for chunk in subject.engine.run(each)]
    assert [len(chunk.data.ids) for chunk in chunks] == [1, 1, 1]


async def test_what_is_no_model_is_told_in_words(tmp_path, tiny_llama):
    with pytest.raises(EngineStartError, match=r"no config\.json"):
        await TransformersEngine(model_path=str(tmp_path)).start()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(EngineStartError, match="cannot load"):
        await TransformersEngine(model_path=str(tmp_path)).start()
    with pytest.raises(ValueError, match="bf16"):
        TransformersEngine(model_path=str(tiny_llama), weights="q4")


@pytest.fixture
async def bounded(tiny_llama):
    engine = TransformersEngine(model_path=str(tiny_llama), max_running=4, threads=1, weights="f32", kv_tokens=40)
    yield Subject(engine, await engine.start())
    await engine.close()


async def test_a_batch_that_outgrows_its_memory_ends_to_be_tried_with_fewer(bounded):
    """3 rows of at most 6 prompt tokens hold 40 tokens up to their 7th step."""
    assert bounded.info.capacity["kv_tokens"] == 40
    works = [work("short", output=3), work("a", output=20, prompt=[4] * 6), work("b", output=8)]
    short, a, b = await bounded.run(*works)
    assert short.reason == "length"
    for answer in (a, b):
        assert (answer.reason, answer.finish.detail) == ("error", {"retry": "memory"})
        assert len(answer.ids) == answer.finish.usage["output_tokens"] == 7
    (alone,) = await bounded.run(work("again", output=20, prompt=[4] * 6))
    assert alone.ids[:7] == a.ids
    assert len(alone.ids) == 20


@pytest.mark.parametrize(
    "terms",
    [
        {"temperature": 1.0, "seed": 11},
        {"temperature": 1.5, "seed": 12, "top_p": 0.8, "frequency_penalty": 1.0},
        {"presence_penalty": 2.0},
    ],
)
async def test_what_is_seeded_or_penalised_goes_on_as_it_would_have(subject, terms):
    prompt = [5, 6, 7]
    (whole,) = await subject.run(work("whole", output=20, prompt=prompt, **terms))
    (rest,) = await subject.run(work("rest", output=13, prompt=prompt + whole.ids[:7], continued=7, **terms))
    assert rest.ids == whole.ids[7:]
    (anew,) = await subject.run(work("anew", output=13, prompt=prompt + whole.ids[:7], **terms))
    assert anew.ids != rest.ids


async def test_a_batch_that_just_fits_its_memory_runs_to_its_end(bounded):
    answers = await bounded.run(*(work(f"r{i}", output=7, prompt=[4] * 3) for i in range(4)))
    assert {(answer.reason, len(answer.ids)) for answer in answers} == {("length", 7)}


async def test_what_alone_is_longer_than_the_memory_is_rejected(bounded):
    (answer,) = await bounded.run(work("a", output=31, prompt=[4] * 10))
    assert answer.reason == "rejected"


async def test_a_plan_bounds_every_answer(subject):
    works = [work("a", output=20), work("b", output=2)]
    counts = {}
    async for chunks in subject.engine.run_batch(works, {"most_tokens": 5}):
        for chunk in chunks:
            counts[chunk.id] = counts.get(chunk.id, 0) + len(chunk.data.ids)
    assert counts == {"a": 5, "b": 2}


async def test_many_steps_of_rows_of_many_lengths_are_those_of_generate_alone(subject, tiny_llama, monkeypatch):
    """Beyond what the cache had room for at first, and with padding: heads that share keys among them."""
    import torch
    from transformers import AutoModelForCausalLM

    from foreserve.engines import transformers_attention

    monkeypatch.setattr(transformers_attention, "GROWTH", 16)

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    prompts = [[5, 6, 7], [3] * 40]
    answers = await subject.run(*(work(f"r{i}", output=80, prompt=prompt) for i, prompt in enumerate(prompts)))
    for prompt, answer in zip(prompts, answers, strict=True):
        alone = model.generate(
            torch.tensor([prompt]), max_new_tokens=80, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        assert answer.ids == alone[0, len(prompt) :].tolist()
