from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from foreserve.errors import ConfigError
from foreserve.models.catalog import locate
from foreserve.models.facts import from_folder, from_gguf
from foreserve.models.gguf_file import read_header

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

CONFIG = {
    "model_type": "llama",
    "max_position_embeddings": 2048,
    "vocab_size": 1000,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def test_gguf(make_gguf: Callable[..., Path]) -> None:
    header = read_header(make_gguf())
    facts = from_gguf(header)
    assert (facts.name, facts.architecture, facts.context_tokens, facts.layers) == ("Tiny", "llama", 512, 2)
    assert facts.vocab_size == 3 + 256 + 6
    assert facts.kv_bytes_per_token == 2 * 2 * (16 + 16) * 2  # layers, KV heads, key and value, two bytes
    assert facts.weights_bytes == sum(tensor.size for tensor in header.tensors)
    assert (facts.bos_id, facts.bos_token, facts.eos_token) == (1, "<|im_start|>", "<|im_end|>")
    assert facts.eos_ids == (2, 0)  # the one that is named, then <|endoftext|> by its text
    assert facts.chat_template == TEMPLATE


def test_gguf_names_more_ends_and_other_heads(make_gguf: Callable[..., Path]) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_uint32("tokenizer.ggml.eot_token_id", 7)
        writer.add_key_length(8)
        writer.add_value_length(4)

    facts = from_gguf(read_header(make_gguf(extra=extra)))
    assert facts.eos_ids == (2, 7, 0)
    assert facts.kv_bytes_per_token == 2 * 2 * (8 + 4) * 2


def test_gguf_that_is_no_language_model_or_a_part(make_gguf: Callable[..., Path]) -> None:
    def split(writer: gguf.GGUFWriter) -> None:
        writer.add_uint16("split.count", 3)

    with pytest.raises(ConfigError, match="llama-gguf-split --merge"):
        from_gguf(read_header(make_gguf(extra=split)))

    def ends(writer: gguf.GGUFWriter) -> None:
        writer.add_uint32("tokenizer.ggml.eot_token_id", 10**6)

    with pytest.raises(ConfigError, match="eot_token_id is 1000000; expected an integer, 0 to 264"):
        from_gguf(read_header(make_gguf(extra=ends)))


def test_gguf_with_impossible_heads(make_gguf: Callable[..., Path]) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_float32("tiny.attention.head_count", float("nan"))
        for key, value in (("block_count", 2), ("context_length", 512), ("embedding_length", 64)):
            writer.add_uint32(f"tiny.{key}", value)
        writer.kv_data[0]["general.architecture"].value = "tiny"

    with pytest.raises(ConfigError, match=r"tiny\.attention\.head_count holds \[nan\]; expected counts"):
        from_gguf(read_header(make_gguf(extra=extra)))


def folder_of(path: Path, **files: object) -> Path:
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def test_folder(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path,
        config=CONFIG,
        generation_config={"eos_token_id": [2, 7]},
        tokenizer_config={"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "old"},
    )
    facts = from_folder(folder, 123)
    assert facts.eos_ids == (2, 7)
    assert (facts.bos_id, facts.bos_token, facts.eos_token, facts.chat_template) == (1, "<s>", "</s>", "old")
    assert facts.kv_bytes_per_token == 3 * 2 * 8 * 2 * 2
    assert (facts.context_tokens, facts.vocab_size, facts.weights_bytes) == (2048, 1000, 123)
    (folder / "chat_template.jinja").write_text("new")
    assert from_folder(folder, 0).chat_template == "new"


def test_folder_of_another_make(tmp_path: Path) -> None:
    gpt2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 64, "vocab_size": 9}
    facts = from_folder(folder_of(tmp_path, config=gpt2), 0)
    assert (facts.layers, facts.context_tokens, facts.kv_bytes_per_token) == (2, 64, 2 * 4 * 8 * 2 * 2)
    assert (facts.eos_ids, facts.bos_id, facts.chat_template) == ((), None, None)
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    inner = {"model_type": "vision", "text_config": CONFIG}
    facts = from_folder(folder_of(tmp_path, config=inner, tokenizer_config={"chat_template": named}), 0)
    assert (facts.architecture, facts.chat_template) == ("llama", "d")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", r"config\.json: cannot be read"),
        ("[1]", r"config\.json: cannot be read"),
        ("[" * 100_000, r"config\.json: cannot be read"),
        (json.dumps({**CONFIG, "num_hidden_layers": "many"}), "no usable figure num_hidden_layers or n_layer"),
        (json.dumps({**CONFIG, "vocab_size": -1}), "no usable figure vocab_size"),
    ],
)
def test_broken_folders(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=message):
        from_folder(tmp_path, 0)


@pytest.mark.model
def test_packaged_models() -> None:
    facts = from_gguf(read_header(locate("smollm2", "test").path))
    assert (facts.context_tokens, facts.layers, facts.vocab_size) == (8192, 30, 49152)
    assert facts.kv_bytes_per_token == 30 * 3 * 64 * 2 * 2
    assert facts.eos_ids[0] == 2
    encoder = from_folder(locate("minilm", "test").path, 1)
    assert (encoder.architecture, encoder.context_tokens, encoder.chat_template) == ("bert", 512, None)
