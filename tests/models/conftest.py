"""A small but whole GGUF file: real tokenizer, real tensors, a few kilobytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from foreserve.models.catalog import Source

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def byte_letters() -> list[str]:
    """Byte-level BPE's letters in order of their bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(spare)) for byte in range(256)]


def write_gguf(
    path: Path,
    *,
    quantised: str = "Q4_1",
    architecture: str = "llama",
    layers: int = 2,
    width: int = 64,
    extra: Callable[[gguf.GGUFWriter], None] | None = None,
    **changed: Any,
) -> Path:
    """A llama-like model. `changed` replaces fields by name (`pre`, `template`, `tokens`, `merges`, …)."""
    merges = changed.get("merges", ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġ Ġ"])
    tokens = changed.get("tokens", [*SPECIALS, *byte_letters(), *("".join(merge.split(" ")) for merge in merges)])
    kinds = changed.get("kinds", [3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    writer.add_array("general.languages", ["en"])
    writer.add_uint32(f"{architecture}.vocab_size", len(tokens))
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(width // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(3)
    writer.add_tokenizer_model(changed.get("model", "gpt2"))
    if changed.get("pre", "smollm") is not None:
        writer.add_tokenizer_pre(changed.get("pre", "smollm"))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if "scores" in changed:
        writer.add_token_scores(changed["scores"])
    else:
        writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(changed.get("template", TEMPLATE))
    if extra:
        extra(writer)
    rng = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType[quantised]

    def matrix(name: str, rows: int, columns: int) -> None:
        data = rng.standard_normal((rows, columns), dtype=np.float32) * 0.1
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)

    matrix("token_embd.weight", len(tokens), width)
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    for layer in range(layers):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(width, dtype=np.float32))
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", np.ones(width, dtype=np.float32))
        matrix(f"blk.{layer}.attn_q.weight", width, width)
        matrix(f"blk.{layer}.attn_k.weight", width // 2, width)
        matrix(f"blk.{layer}.attn_v.weight", width // 2, width)
        matrix(f"blk.{layer}.attn_output.weight", width, width)
        matrix(f"blk.{layer}.ffn_gate.weight", 2 * width, width)
        matrix(f"blk.{layer}.ffn_up.weight", 2 * width, width)
        matrix(f"blk.{layer}.ffn_down.weight", width, 2 * width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def write_tiny() -> Callable[..., Path]:
    """`write_gguf` for fixtures that outlive one test."""
    return write_gguf


@pytest.fixture
def make_gguf(tmp_path: Path) -> Callable[..., Path]:
    """`make_gguf(name="tiny.gguf", **changes)` writes a small model and gives its path."""

    def make(name: str = "tiny.gguf", **changes: Any) -> Path:
        return write_gguf(tmp_path / name, **changes)

    return make


@pytest.fixture
def tiny(make_gguf: Callable[..., Path]) -> Source:
    """The small model as a source."""
    return Source(name="tiny", form="gguf", path=make_gguf())
