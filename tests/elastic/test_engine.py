import base64
import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForSequenceClassification

from foreserve.core import Chunk, Work
from foreserve.elastic.engine import ElasticEngine
from foreserve.elastic.folder import read_folder, read_tasks
from foreserve.elastic.payload import Encode, Vector
from foreserve.elastic.profile import Profile
from foreserve.errors import EngineStartError
from foreserve.tensors import Tensor

PROFILE = Profile(sizes=(1,), lengths=(1,), seconds={"plain": ((1.0,),)})


async def started(folder: Path, **words: Any) -> ElasticEngine:
    facts = read_folder(folder)
    if "tasks" in words:
        base = words["tasks"]
        told = read_tasks(base, facts)
        words["tasks"] = {name: (str(base / name), msgspec.to_builtins(task)) for name, task in told.items()}
    words = {"profile": msgspec.to_builtins(PROFILE), "threads": 1, **words}
    engine = ElasticEngine(folder=str(folder), facts=msgspec.to_builtins(facts), **words)
    engine.info = await engine.start()  # type: ignore[attr-defined]
    return engine


async def ran(engine: ElasticEngine, *payloads: Encode, plan: str = "plain") -> list[Chunk]:
    works = [Work(id=str(at), payload=each, cost={}, arrival=0.0) for at, each in enumerate(payloads)]
    chunks = [chunk async for chunks in engine.run_batch(works, plan) for chunk in chunks]
    return sorted(chunks, key=lambda chunk: int(chunk.id))


def numbers(chunk: Chunk) -> np.ndarray:
    assert isinstance(chunk.data, Vector)
    assert chunk.finish is not None
    assert chunk.finish.reason == "stop"
    return np.frombuffer(chunk.data.data, "<f4")


def text(*ids: int) -> Encode:
    return Encode(ids=[2, *ids, 3])


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    draw = np.random.default_rng(width * height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(draw).convert(mode).save(out, "PNG")
    return out.getvalue()


async def test_embeddings_are_the_models_pooled_and_brought_to_length_one(sentences: Path) -> None:
    engine = await started(sentences)
    payloads = [text(4, 5, 6), text(), text(*[7] * 18)]
    found = [numbers(chunk) for chunk in await ran(engine, *payloads)]
    model = AutoModel.from_pretrained(sentences).eval()
    for payload, vector in zip(payloads, found, strict=True):
        with torch.inference_mode():
            tokens = model(input_ids=torch.tensor([payload.ids])).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (tokens / tokens.norm()).numpy(), atol=1e-5)


async def test_merged_embeddings_are_others_and_do_not_depend_on_the_batch(sentences: Path) -> None:
    engine = await started(sentences)
    payloads = [text(*range(4, 16)), text(5, 6), text(8, 9, 10)]
    together = [numbers(chunk) for chunk in await ran(engine, *payloads, plan="merge:2")]
    alone = [numbers((await ran(engine, each, plan="merge:2"))[0]) for each in payloads]
    plain = [numbers(chunk) for chunk in await ran(engine, *payloads)]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert not np.allclose(together[0], plain[0], atol=1e-3)


async def test_tasks_answer_with_their_own_heads_and_prompts_in_one_batch(sentences: Path, tasks: Path) -> None:
    engine = await started(sentences, tasks=tasks, settings=["merge:2", "plain", "prompts:2"])
    payloads = [msgspec.structs.replace(text(4, 5, 6, 7), task=name) for name in ("mood", "topic", "mood")]
    for plan in ("merge:2", "plain", "prompts:2"):
        together = [numbers(chunk) for chunk in await ran(engine, *payloads, plan=plan)]
        assert [len(each) for each in together] == [2, 3, 2]
        for payload, found in zip(payloads, together, strict=True):
            np.testing.assert_allclose(found, numbers((await ran(engine, payload, plan=plan))[0]), atol=1e-5)
            assert found.sum() == pytest.approx(1.0, abs=1e-5)
    mixed = await ran(engine, payloads[0], text(4, 5, 6, 7))
    assert [len(numbers(each)) for each in mixed] == [2, 16]


async def test_a_cross_encoder_scores_pairs(cross: Path) -> None:
    engine = await started(cross)
    pair = Encode(ids=[2, 4, 3, 5, 6, 3], types=[0, 0, 0, 1, 1, 1])
    found = numbers((await ran(engine, pair, Encode(ids=[2, 4, 3, 5, 3], types=[0, 0, 0, 1, 1])))[0])
    model = AutoModelForSequenceClassification.from_pretrained(cross).eval()
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([pair.ids]), token_type_ids=torch.tensor([pair.types])).logits.sigmoid()
    np.testing.assert_allclose(found, wanted[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (12, 12), (100, 7)])
async def test_images_of_any_size_and_mode(vision: Path, size: tuple[int, int]) -> None:
    engine = await started(vision)
    made = [Encode(image=png(*size, mode)) for mode in ("RGB", "L", "RGBA")]
    assert all(numbers(chunk).shape == (16,) for chunk in await ran(engine, *made, plan="merge:2"))


async def test_pixels_are_the_same_as_their_file(vision: Path) -> None:
    engine = await started(vision)
    file = png(20, 30)
    array = np.asarray(Image.open(io.BytesIO(file)))
    pixels = Encode(pixels=Tensor("UINT8", array.shape, array.tobytes()))
    one, other = await ran(engine, Encode(image=file), pixels)
    np.testing.assert_array_equal(numbers(one), numbers(other))


async def test_an_image_may_come_in_base64_as_json_has_no_bytes(vision: Path) -> None:
    engine = await started(vision)
    file = png(20, 30)
    one, other = await ran(engine, Encode(image=file), Encode(image=base64.b64encode(file)))
    np.testing.assert_array_equal(numbers(one), numbers(other))


async def test_a_broken_image_is_rejected_alone(vision: Path) -> None:
    engine = await started(vision)
    broken, cut, whole = await ran(
        engine, Encode(image=b"no image"), Encode(image=png(9, 9)[:60]), Encode(image=png(9, 9))
    )
    for each in (broken, cut):
        assert each.finish is not None
        assert each.finish.reason == "rejected"
        assert "cannot be read" in (each.finish.error or "")
    assert numbers(whole).shape == (16,)


async def test_what_was_cancelled_gets_no_answer(sentences: Path) -> None:
    engine = await started(sentences)
    plain = engine._encoded

    def cancelled(works: Any, plan: str) -> list[Chunk]:
        engine._cancelled.add("1")
        return plain(works, plan)

    engine._encoded = cancelled  # type: ignore[method-assign]
    found = await ran(engine, text(4), text(5))
    assert [chunk.finish.reason for chunk in found if chunk.finish] == ["stop", "cancelled"]
    assert (await engine.load()).running == 0


async def test_without_a_profile_it_measures_every_setting(sentences: Path) -> None:
    words = {"settings": ["merge:2", "plain"], "size": 4, "samples": [[2, *range(4, 20), 3]], "measure_s": 0.05}
    engine = await started(sentences, profile=None, **words)
    facts = engine.info.facts  # type: ignore[attr-defined]
    profile = msgspec.convert(facts["profile"], Profile)
    assert (profile.sizes, profile.lengths) == ((1, 4), (16, 20))
    assert [*profile.seconds] == ["merge:2", "plain"]
    assert 0 < facts["fidelity"]["merge:2"] < facts["fidelity"]["plain"] == pytest.approx(1.0)


async def test_a_task_that_is_broken_is_told_at_the_start(sentences: Path, tasks: Path, tmp_path: Path) -> None:
    broken = tmp_path / "tasks"
    (broken / "mood").mkdir(parents=True)
    (broken / "mood" / "task.json").write_bytes((tasks / "mood" / "task.json").read_bytes())
    (broken / "mood" / "task.safetensors").write_bytes(b"nothing")
    with pytest.raises(EngineStartError, match="cannot be used"):
        await started(sentences, tasks=broken)


async def test_what_passes_hold_is_measured_too(sentences: Path) -> None:
    engine = await started(sentences, profile=None, settings=["merge:2", "plain"], size=8, measure_s=0.1)
    profile = msgspec.convert(engine.info.facts["profile"], Profile)  # type: ignore[attr-defined]
    assert set(profile.bytes) == {"merge:2", "plain"}
    for grid in profile.bytes.values():
        assert grid[0][0] < grid[-1][0] < grid[-1][-1]
        assert grid[-1][0] > 8 * 16 * 16 * 4  # eight inputs of sixteen tokens, sixteen wide
    await engine.close()
