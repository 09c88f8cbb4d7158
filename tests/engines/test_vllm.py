"""The engine `vllm` on a real vLLM: run by `make test-vllm`, in the environment that `tests/peer/setup.sh` makes.

vLLM's processes take half a minute to start, so engines are shared by all tests of this module, and so is their loop.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import pytest_asyncio

from foreserve.engines.vllm import VLLMEngine
from foreserve.errors import EngineStartError
from foreserve.models.catalog import locate
from foreserve.models.prepare import prepare
from foreserve.models.tokenizer import Tokenizer
from tests.engines.contract import Contract, ModelContract, Subject, work

pytest.importorskip("vllm", reason="vLLM is not installed here; make test-vllm runs these tests")

pytestmark = [
    pytest.mark.peer,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),
]

MODULE = {"scope": "module", "loop_scope": "module"}


def engine(folder: Path, **options) -> VLLMEngine:
    return VLLMEngine(model_path=str(folder), enforce_eager=True, block_size=32, **options)


@pytest.fixture(scope="module")
def folder() -> Path:
    return prepare(locate("smollm2", "tests"), "vllm", "bf16").weights_path


CORES: dict[VLLMEngine, int] = {}
"""The pid of each engine's process of vLLM."""


async def served(folder: Path, **options):
    made = engine(folder, **options)
    others = set(multiprocessing.active_children())
    info = await made.start()
    (CORES[made],) = (child.pid for child in set(multiprocessing.active_children()) - others)
    yield made, info
    await made.close()


@pytest_asyncio.fixture(**MODULE)
async def plain(folder):
    async for each in served(folder, max_running=4, kv_cache_gb=0.2, context_tokens=512):
        yield each


@pytest_asyncio.fixture(**MODULE)
async def small(folder):
    async for each in served(folder, max_running=6, kv_cache_gb=0.006):
        yield each


@pytest.fixture
def subject(plain):
    return Subject(*plain)


@pytest.fixture
def tight(small):
    return Subject(*small)


class TestVLLM(Contract, ModelContract):
    long = 100

    async def test_rivals_come_best_first_with_the_chosen_token_among_them(self, subject):
        (answer,) = await subject.run(work("a", output=3, logprobs=4))
        data = [chunk.data for chunk in answer.chunks if chunk.data]
        top = [each for chunk in data for each in chunk.top]
        assert [len(each) for each in top] == [4] * 3
        assert [each[0] for each in top] == list(zip(answer.ids, answer.logprobs, strict=True))
        assert all(each == sorted(each, key=lambda rival: -rival[1]) for each in top)

    async def test_an_answer_holds_to_a_json_schema_and_a_bad_schema_is_rejected(self, subject, folder):
        schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}}
        schema |= {"required": ["n"], "additionalProperties": False}
        tokenizer = Tokenizer.load(prepare(locate("smollm2", "tests"), "vllm", "bf16"))
        prompt = tokenizer.encode("Give a number as JSON:")
        eos = {"ignore_eos": False, "stop_tokens": (2,)}
        good, ignoring, bad = await subject.run(
            work("good", output=60, prompt=prompt, json_schema=json.dumps(schema), **eos),
            work("ignoring", output=60, prompt=prompt, json_schema=json.dumps(schema), stop_tokens=(2,)),
            work("bad", output=60, prompt=prompt, json_schema='{"type": "nothing"}', **eos),
        )
        for answer in (good, ignoring):
            assert answer.reason == "stop", answer.finish
            assert set(json.loads(tokenizer.decode(answer.ids))) == {"n"}
        assert bad.reason == "rejected", bad.finish
        assert bad.finish.error

    async def test_a_prompt_seen_before_is_found_in_the_prefix_cache(self, subject):
        prompt = [7 + i % 50 for i in range(200)]
        before = (await subject.engine.load()).cached_tokens
        first, again = [(await subject.run(work(id, prompt=prompt)))[0] for id in ("first", "again")]
        assert first.ids == again.ids
        cached = again.finish.usage["cached_tokens"]
        assert 0 < cached <= 200
        assert (await subject.engine.load()).cached_tokens - (before or 0) >= cached

    async def test_load_tells_of_steps_and_the_kv_cache(self, subject):
        running = asyncio.create_task(subject.run(work("a", output=self.long, prompt=range(1, 200))))
        await subject.begun("a")
        while (load := await subject.engine.load()).last_step_s is None or not load.kv_fraction:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (load.running, load.waiting) == (1, 0)
        assert 0 < load.kv_fraction < 1
        assert load.last_step_s > 0
        await running

    async def test_what_it_is(self, subject):
        assert subject.info.facts["context_tokens"] == 512
        assert subject.info.facts["weights"] == "bf16"
        assert subject.info.facts["block_tokens"] == 32
        assert subject.info.capacity["kv_tokens"] > 4 * 512


@pytest_asyncio.fixture(**MODULE)
async def two_slots(folder):
    async for each in served(folder, max_running=2, max_waiting=6, kv_cache_gb=0.1, context_tokens=512):
        yield each


async def test_the_shortest_predicted_runs_next(two_slots):
    """Two run; of six that wait, vLLM starts those first that are foreseen to be short, whatever their limit."""
    queued = Subject(*two_slots)
    assert queued.slots == 8
    ended: list[str] = []

    async def run(each):
        await queued.run(each)
        ended.append(each.id)

    running = [asyncio.create_task(run(work(f"running{i}", output=40))) for i in range(2)]
    for i in range(2):
        await queued.begun(f"running{i}")
    foreseen = {"e": 90, "d": 70, "c": 50, "b": 30, "a": 10}
    waiting = [asyncio.create_task(run(work(id, output=n, predicted_tokens=n))) for id, n in foreseen.items()]
    urgent = work("urgent", output=100, predicted_tokens=100, priority=-1)
    waiting.append(asyncio.create_task(run(urgent)))
    while not (await queued.engine.load()).waiting:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert (await queued.engine.load()).running == 2
    begun = [id for id in (*foreseen, "urgent") if queued.answers[id].chunks]
    assert begun == []
    await asyncio.gather(*running, *waiting)
    # The urgent one takes a slot first, and keeps it for as long as the three shortest take in the other.
    assert [id for id in ended if id in "abcde"] == ["a", "b", "c", "d", "e"]
    assert ended.index("urgent") < ended.index("d")


async def test_more_than_it_may_hold_end_with_an_error_at_once(two_slots):
    queued = Subject(*two_slots)
    answers = await queued.run(*(work(f"r{i}", output=6) for i in range(10)))
    reasons = [answer.reason for answer in answers]
    assert sorted(reasons) == ["error"] * 2 + ["length"] * 8
    assert {answer.finish.error for answer in answers if answer.reason == "error"} == {
        "the engine holds 8 requests already"
    }


async def test_a_killed_engine_process_ends_each_request_once_and_is_told(two_slots):
    dying = Subject(*two_slots)
    running = asyncio.create_task(dying.run(work("a", output=400), work("b", output=400)))
    await dying.begun("a")
    await dying.begun("b")
    os.kill(CORES[dying.engine], signal.SIGKILL)
    for answer in await running:
        assert (answer.reason, answer.finish.error) == ("error", "vLLM's engine process has ended")
        assert 0 < len(answer.ids) < 400
    assert await dying.engine.failed() == "vLLM's engine process has ended"
    assert (await dying.engine.load()).running == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tensor_paralel_size": 2}, r"no argument 'tensor_paralel_size'; did you mean 'tensor_parallel_size'\?"),
        ({"tensor_parallel_size": "many"}, "`tensor_parallel_size` is 'many': Input should be a valid integer"),
        ({"kv_cache_dtype": "q1"}, "`kv_cache_dtype` is 'q1': Input should be 'auto'"),
        ({"sleep": True}, "cannot let go of memory on this platform"),
        ({"context_tokens": 100_000}, "vLLM cannot run .*100000"),
    ],
)
async def test_wrong_arguments_are_told_before_anything_starts(folder, options, words):
    if options.get("sleep"):
        from vllm.platforms import current_platform

        if current_platform.is_sleep_mode_available():
            pytest.skip("this platform can")
    with pytest.raises(EngineStartError, match=words):
        await engine(folder, **options).start()
