"""Checkpoints from GGUF files, loaded back by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from foreserve.errors import ConfigError
from foreserve.models.catalog import Source, locate
from foreserve.models.prepare import prepare
from foreserve.models.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("weights", "dtype"), [(None, "bfloat16"), ("f32", "float32")])
def test_a_small_model_keeps_its_weights(tiny: Source, tmp_path: Path, weights: str | None, dtype: str) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    prepared = prepare(tiny, "transformers", weights, cache=tmp_path / "cache")
    model = transformers.AutoModelForCausalLM.from_pretrained(prepared.weights_path)
    assert model.dtype == getattr(torch, dtype)
    assert getattr(model.config, "quantization_config", None) is None
    assert model.generation_config.eos_token_id == [2, 0]
    embedding = next(tensor for tensor in gguf.GGUFReader(tiny.path).tensors if tensor.name == "token_embd.weight")
    expected = gguf.quants.dequantize(embedding.data, embedding.tensor_type)
    found = model.get_input_embeddings().weight.detach().float().numpy()
    assert np.abs(found - expected).max() <= (0 if weights == "f32" else 0.004 * np.abs(expected).max())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tokenizer = transformers.AutoTokenizer.from_pretrained(prepared.weights_path)
    text = "<|im_start|>hello  wörld 12"
    assert tokenizer.encode(text) == Tokenizer.load(prepared).encode(text)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == (
        "<|im_start|>user\nx<|im_end|>\n"
    )
    assert prepared.facts.weights_bytes == (prepared.weights_path / "model.safetensors").stat().st_size


def test_a_folder_without_tokenizer_json_gets_one(tiny: Source, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = prepare(tiny, "transformers", None, cache=tmp_path / "cache").weights_path
    (tmp_path / "old").mkdir()
    for name in ("config.json", "generation_config.json"):
        (tmp_path / "old" / name).write_bytes((folder / name).read_bytes())
    broken = Source(name="old", form="huggingface", path=tmp_path / "old")
    with pytest.raises(ConfigError, match=r"old: holds no tokenizer\.json, and none could be made"):
        prepare(broken, "transformers", None, cache=tmp_path / "cache")
    letters = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
    (tmp_path / "old" / "vocab.json").write_text(json.dumps(letters))
    (tmp_path / "old" / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "old" / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    prepared = prepare(broken, "transformers", None, cache=tmp_path / "cache")
    assert Tokenizer.load(prepared).encode("ab") == [3]
    assert transformers.__version__


@pytest.mark.model
def test_the_packaged_model_answers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    prepared = prepare(locate("smollm2", "test"), "transformers", None, cache=tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(prepared.weights_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(prepared.weights_path)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
