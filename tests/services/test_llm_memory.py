from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foreserve.errors import ConfigError
from foreserve.models.facts import ModelFacts
from foreserve.services.llm import LLM
from foreserve.services.llm_memory import GIB, RUNTIME_BYTES, memory_bytes, static_kv_tokens
from foreserve.settings import LLMSettings

CONFIG = {
    "max_position_embeddings": 1000, "vocab_size": 10, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_size": 64,
}  # fmt: skip
KV_BYTES = 2 * 2 * 16 * 2 * 2
"""Of one token at bf16: layers, KV heads, head, key and value, two bytes."""


def folder(tmp_path: Path, *files: tuple[str, int]) -> LLMSettings:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for name, size in files:
        (tmp_path / name).write_bytes(b"x" * size)
    return LLMSettings(model=str(tmp_path), kv_cache_gb=0.5)


def test_a_folder_needs_its_weight_files(tmp_path: Path) -> None:
    settings = folder(tmp_path, ("a.safetensors", 1000), ("b.safetensors", 500), ("pytorch_model.bin", 9000))
    # 16 rows of a context each are less than the half GiB that was given.
    assert memory_bytes(settings, "transformers", "it") == 1500 + 16_000 * KV_BYTES + RUNTIME_BYTES["transformers"]
    assert memory_bytes(settings, "openvino", "it") == 1500 + GIB // 2 + RUNTIME_BYTES["openvino"]


FACTS = ModelFacts(
    name="m", architecture="llama", context_tokens=1000, vocab_size=10, layers=2, kv_bytes_per_token=KV_BYTES,
    weights_bytes=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "weights", "tokens"),
    [
        ({"kv_cache_gb": 2_000 * KV_BYTES / GIB}, "bf16", 2_000),
        ({"kv_cache_gb": 2_000 * KV_BYTES / GIB}, "f32", 1_000),
        ({"kv_cache_gb": 10 * KV_BYTES / GIB}, "bf16", 1_000),
        ({"kv_cache_gb": 10 * KV_BYTES / GIB, "context_tokens": 300}, "bf16", 300),
        ({"kv_cache_gb": 1.0, "max_running": 3}, None, 3_000),
        ({"kv_cache_gb": 1.0, "engine_options": {"kv_tokens": 77}}, "bf16", 77),
    ],
)
def test_a_static_batch_holds_what_the_memory_has_room_for(
    words: dict[str, Any], weights: str | None, tokens: int
) -> None:
    assert static_kv_tokens(LLMSettings(model="m", **words), FACTS, weights) == tokens


@pytest.mark.parametrize("tokens", [500, 5_000])
def test_the_memory_of_a_static_cache_is_counted(tmp_path: Path, tokens: int) -> None:
    asked = msgspec.structs.replace(folder(tmp_path), kv_cache_gb=tokens * KV_BYTES / GIB)
    least = max(tokens, 1000) * KV_BYTES
    assert memory_bytes(asked, "transformers", "it") == least + RUNTIME_BYTES["transformers"]


def test_a_missing_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it: no model 'nowhere'"):
        memory_bytes(LLMSettings(model="nowhere"), "openvino", "it")


def test_without_weights_nothing_is_needed() -> None:
    assert LLM("simulated").memory_bytes() == 0


@pytest.mark.model
def test_a_packaged_model_by_the_precision_it_is_kept_in() -> None:
    def need(engine: str, weights: str | None = None) -> int:
        settings = LLMSettings(model="smollm2", weights=weights, kv_cache_gb=1.0)  # type: ignore[arg-type]
        return memory_bytes(settings, engine, "it") - RUNTIME_BYTES[engine] - GIB

    f16 = need("openvino", "f16")
    assert 250e6 < f16 < 350e6  # 135 million parameters, two bytes each, and the embedding
    assert need("openvino") == f16
    assert 0.5 * f16 < need("openvino", "q8_0") < 0.6 * f16
    # A static cache is of whole tokens, each of some kilobytes.
    assert need("transformers", "f32") == pytest.approx(2 * need("transformers"), abs=2**17)
    assert need("transformers") == pytest.approx(f16, abs=2**17)
