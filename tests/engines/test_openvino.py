import asyncio
import contextlib
import json

import pytest

from foreserve.engines.openvino import OpenVINOEngine
from foreserve.errors import EngineStartError
from tests.engines.contract import Subject, work

pytest.importorskip("openvino_genai")

END = "<|im_end|>"

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "n": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["colour", "n"],
    "additionalProperties": False,
}


async def test_a_missing_model_is_told_in_words(tmp_path):
    with pytest.raises(EngineStartError, match="no model file"):
        await OpenVINOEngine(model_path=str(tmp_path / "none.gguf")).start()


_started: list[Subject] = []


@pytest.fixture
async def subject(smollm2):
    if not _started:
        engine = OpenVINOEngine(**smollm2, max_running=4, kv_cache_gb=0.1)
        _started.append(Subject(engine, await engine.start()))
    return Subject(_started[0].engine, _started[0].info)


@contextlib.asynccontextmanager
async def fresh(smollm2):
    """An engine of a test's own, to be broken."""
    engine = OpenVINOEngine(**smollm2, max_running=2, kv_cache_gb=0.1)
    yield Subject(engine, await engine.start())
    await engine.close()


@pytest.fixture(autouse=True, scope="module")
def free():
    yield
    _started.clear()


@pytest.mark.model
@pytest.mark.slow
class TestWithTheModel:
    async def test_facts_are_those_of_the_model_and_the_memory(self, subject):
        assert subject.info.facts["context_tokens"] == min(8192, subject.info.capacity["kv_tokens"])
        assert subject.info.facts["weights"] == "f16"

    async def test_an_answer_keeps_to_its_schema(self, subject, smollm2_tokenizer):
        text = f"<|im_start|>user\nOne colour and one number, as JSON.{END}\n<|im_start|>assistant\n"
        prompt = smollm2_tokenizer.encode(text)
        (end,) = smollm2_tokenizer.encode(END)
        terms = {"output": 200, "json_schema": json.dumps(SCHEMA), "stop_tokens": (end,)}
        (answer,) = await subject.run(work("a", prompt=prompt, **terms))
        assert answer.reason == "stop"
        value = json.loads(smollm2_tokenizer.decode(answer.ids))
        assert value["colour"] in ("red", "blue")
        assert 0 <= value["n"] <= 99

    @pytest.mark.parametrize(
        "schema", ['{"type": "nonsense"}', '{"type": ', '{"$ref": "#/nowhere"}', '{"type": "string", "pattern": "(["}']
    )
    async def test_a_schema_that_cannot_be_compiled_hurts_nobody_else(self, subject, schema):
        (expected,) = await subject.run(work("alone", output=60))
        others = asyncio.create_task(subject.run(work("early", output=60)))
        await subject.begun("early")
        bad, late = await subject.run(work("bad", json_schema=schema), work("late", output=20))
        assert bad.reason == "rejected"
        assert "json_schema" in bad.finish.error
        assert late.reason == "length"
        (early,) = await others
        assert (early.reason, len(early.ids)) == ("length", 60)
        assert early.finish.usage == expected.finish.usage
        again, after = await subject.run(work("again", json_schema=schema), work("after"))
        assert (again.reason, after.reason) == ("rejected", "length")

    async def test_what_the_library_refuses_is_rejected_in_its_words(self, subject):
        penalty, top_p, rivals, fine = await subject.run(
            work("a", presence_penalty=3.0), work("b", temperature=1.0, top_p=0.0), work("c", logprobs=3), work("d")
        )
        assert (penalty.reason, top_p.reason, rivals.reason, fine.reason) == ("rejected",) * 3 + ("length",)
        assert "presence_penalty" in penalty.finish.error

    async def test_more_than_it_runs_is_refused(self, subject):
        answers = await subject.run(*(work(f"r{i}", output=20) for i in range(5)))
        assert sorted(answer.reason for answer in answers) == ["error"] + ["length"] * 4

    async def test_a_pipeline_that_cannot_be_built_again_is_a_failure_of_the_engine(self, smollm2, monkeypatch):
        def broken():
            raise RuntimeError("no memory left")

        async with fresh(smollm2) as subject:
            fate = asyncio.create_task(subject.engine.failed())
            running = asyncio.create_task(subject.run(work("a", output=60)))
            await subject.begun("a")
            assert not fate.done()
            monkeypatch.setattr(subject.engine, "_build", broken)
            (bad,) = await subject.run(work("bad", json_schema='{"type": "no type"}'))
            (answer,) = await running
            assert (bad.reason, answer.reason) == ("rejected", "error")
            assert "no memory left" in answer.finish.error
            assert "no memory left" in await asyncio.wait_for(fate, 5)
            (after,) = await subject.run(work("after"))
            assert after.reason == "error"  # ours, not the caller's
            assert "no memory left" in after.finish.error

    async def test_an_error_between_two_steps_ends_all_and_is_a_failure_of_the_engine(self, smollm2, monkeypatch):
        def broken(running):
            raise AttributeError("no such status")

        async with fresh(smollm2) as subject:
            running = asyncio.create_task(subject.run(work("a", output=60)))
            await subject.begun("a")
            monkeypatch.setattr(subject.engine, "_collect", broken)
            (answer,) = await running
            assert answer.reason == "error"
            assert "no such status" in await asyncio.wait_for(subject.engine.failed(), 5)

    async def test_log_probabilities_are_those_of_the_model_whatever_the_temperature(self, subject):
        (greedy,) = await subject.run(work("a", output=1, logprobs=0))
        (cold,) = await subject.run(work("b", output=1, logprobs=0, temperature=0.01, seed=1))
        assert greedy.ids == cold.ids
        assert greedy.logprobs == pytest.approx(cold.logprobs, abs=0.05)
