from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from foreserve.errors import ConfigError
from foreserve.models.catalog import Source, locate
from foreserve.models.gguf_file import read_header
from foreserve.models.prepare import prepare, prepared_already
from foreserve.models.tokenizer import Tokenizer


@pytest.mark.parametrize(("weights", "kept"), [(None, "f16"), ("f16", "f16"), ("q8_0", "q8_0")])
def test_gguf_for_openvino(tiny: Source, tmp_path: Path, weights: str | None, kept: str) -> None:
    cache, told = tmp_path / "cache", []
    assert not prepared_already(tiny, "openvino", weights, cache)
    prepared = prepare(tiny, "openvino", weights, lambda done, what: told.append(what), cache)
    assert prepared_already(tiny, "openvino", weights, cache)
    assert told[-1] == f"converting to {kept}"
    told.clear()
    assert prepare(tiny, "openvino", weights, lambda done, what: told.append(what), cache) == prepared
    assert told == []
    assert prepared.weights == kept
    assert prepared.weights_path.parent == prepared.folder
    tensors = read_header(prepared.weights_path).tensors
    assert prepared.facts.weights_bytes == sum(tensor.size for tensor in tensors)
    tokenizers.Tokenizer.from_file(str(prepared.folder / "tokenizer.json"))
    assert json.loads((prepared.folder / "facts.json").read_text())["layers"] == prepared.facts.layers == 2
    assert Tokenizer.load(prepared).encode("hello") == [262]


@pytest.mark.parametrize(("quantised", "weights"), [("F16", "f16"), ("Q8_0", "q8_0")])
def test_gguf_in_the_right_form_is_used_in_place(
    make_gguf: Callable[..., Path], tmp_path: Path, quantised: str, weights: str
) -> None:
    source = Source(name="tiny", form="gguf", path=make_gguf(quantised=quantised))
    for asked in (None, weights):
        prepared = prepare(source, "openvino", asked, cache=tmp_path / "cache")
        assert (prepared.weights_path, prepared.weights) == (source.path, weights)
        assert not list(prepared.folder.glob("*.gguf"))
        assert (prepared.folder / "tokenizer.json").is_file()


def test_a_changed_file_is_prepared_anew(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    source = Source(name="tiny", form="gguf", path=make_gguf())
    first = prepare(source, "openvino", None, cache=tmp_path / "cache")
    make_gguf(layers=3)
    assert not prepared_already(source, "openvino", None, tmp_path / "cache")
    second = prepare(source, "openvino", None, cache=tmp_path / "cache")
    assert (first.facts.layers, second.facts.layers) == (2, 3)
    assert first.folder != second.folder


@pytest.fixture
def folder(tmp_path: Path, tiny: Source) -> Path:
    """A Hugging Face folder with a tokenizer and an empty file for weights."""
    path = tmp_path / "hf"
    path.mkdir()
    config = {"model_type": "llama", "max_position_embeddings": 64, "vocab_size": 265, "num_hidden_layers": 1}
    (path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 2, "hidden_size": 8}))
    (path / "model.safetensors").write_bytes(b"x" * 77)
    made = prepare(tiny, "openvino", None, cache=tmp_path / "other").folder
    (path / "tokenizer.json").write_bytes((made / "tokenizer.json").read_bytes())
    return path


def test_hugging_face_folder_in_place(folder: Path, tmp_path: Path) -> None:
    source = Source(name="hf", form="huggingface", path=folder)
    before = sorted(folder.iterdir())
    prepared = prepare(source, "transformers", None, cache=tmp_path / "cache")
    assert (prepared.weights_path, prepared.weights, prepared.facts.weights_bytes) == (folder, "bf16", 77)
    assert prepare(source, "transformers", "f32", cache=tmp_path / "cache").weights == "f32"
    assert Tokenizer.load(prepared).encode("hello") == [262]
    assert sorted(folder.iterdir()) == before
    (folder / "chat_template.jinja").write_text("new")
    assert prepare(source, "transformers", None, cache=tmp_path / "cache").facts.chat_template == "new"


def test_openvino_folder_in_place(folder: Path, tmp_path: Path) -> None:
    (folder / "openvino_model.xml").write_text("")
    (folder / "openvino_model.bin").write_bytes(b"")
    source = Source(name="ov", form="openvino", path=folder)
    prepared = prepare(source, "openvino", None, cache=tmp_path / "cache")
    assert (prepared.weights_path, prepared.weights) == (folder, None)
    with pytest.raises(ConfigError, match="has its own"):
        prepare(source, "openvino", "f16", cache=tmp_path / "cache")


def test_wrong_pairs_name_the_valid_choices(folder: Path, tiny: Source, tmp_path: Path) -> None:
    source = Source(name="hf", form="huggingface", path=folder)
    with pytest.raises(
        ConfigError, match=r"'openvino' cannot run .*; valid: transformers, vllm .* openvino takes: gguf, open"
    ):
        prepare(source, "openvino", None, cache=tmp_path)
    with pytest.raises(ConfigError, match=r"engine 'vlm' cannot run .*valid: openvino, transformers"):
        prepared_already(tiny, "vlm", None, tmp_path)
    with pytest.raises(ConfigError, match=r"weights 'bf16' is not for engine 'openvino'.*valid: f16, q8_0"):
        prepare(tiny, "openvino", "bf16", cache=tmp_path)


def test_vllm_takes_what_was_prepared_for_transformers(folder: Path, tmp_path: Path) -> None:
    source = Source(name="hf", form="huggingface", path=folder)
    assert not prepared_already(source, "vllm", None, tmp_path)
    made = prepare(source, "transformers", "bf16", cache=tmp_path)
    assert prepared_already(source, "vllm", None, tmp_path)
    same = prepare(source, "vllm", None, cache=tmp_path)
    assert (same.folder, same.weights_path, same.weights) == (made.folder, folder, "auto")


def test_what_openvino_does_not_read_is_refused_before_any_work(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    source = Source(name="g", form="gguf", path=make_gguf(architecture="gemma"))
    with pytest.raises(ConfigError, match="architecture 'gemma'; valid: llama, qwen2, qwen3, or engine `transformers`"):
        prepare(source, "openvino", None, cache=tmp_path / "cache")
    source = Source(name="g", form="gguf", path=make_gguf(pre="new-one"))
    with pytest.raises(ConfigError, match=r"tokenizer\.ggml\.pre is 'new-one'"):
        prepare(source, "openvino", None, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.gguf"))
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_full_disk_is_seen_before_any_work(tiny: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"GiB left; tiny for openvino needs .*FORESERVE_CACHE"):
        prepare(tiny, "openvino", None, cache=tmp_path)


@pytest.mark.model
def test_packaged_models(tmp_path: Path) -> None:
    prepared = prepare(locate("smollm2", "test"), "openvino", None, cache=tmp_path)
    assert prepared.weights_path.stat().st_size == 270_885_952
    encoder = prepare(locate("minilm", "test"), "transformers", None, cache=tmp_path)
    assert len(Tokenizer.load(encoder).encode("a short text")) == 3
