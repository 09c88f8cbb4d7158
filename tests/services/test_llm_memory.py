from __future__ import annotations

from pathlib import Path

import pytest

from foreserve.errors import ConfigError
from foreserve.services.llm import LLM
from foreserve.services.llm_memory import GIB, RUNTIME_BYTES, memory_bytes
from foreserve.settings import LLMSettings


def folder(tmp_path: Path, *files: tuple[str, int]) -> LLMSettings:
    (tmp_path / "config.json").write_text("{}")
    for name, size in files:
        (tmp_path / name).write_bytes(b"x" * size)
    return LLMSettings(model=str(tmp_path), kv_cache_gb=0.5)


def test_a_folder_needs_its_weight_files(tmp_path: Path) -> None:
    settings = folder(tmp_path, ("a.safetensors", 1000), ("b.safetensors", 500), ("pytorch_model.bin", 9000))
    assert memory_bytes(settings, "transformers", "it") == 1500 + RUNTIME_BYTES["transformers"]
    assert memory_bytes(settings, "openvino", "it") == 1500 + GIB // 2 + RUNTIME_BYTES["openvino"]


def test_a_missing_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it: no model 'nowhere'"):
        memory_bytes(LLMSettings(model="nowhere"), "openvino", "it")


def test_without_weights_nothing_is_needed() -> None:
    assert LLM("simulated").memory_bytes() == 0


@pytest.mark.model
def test_a_packaged_model_by_the_precision_it_is_kept_in() -> None:
    def need(engine: str, weights: str | None = None) -> int:
        settings = LLMSettings(model="smollm2", weights=weights, kv_cache_gb=1.0)  # type: ignore[arg-type]
        return memory_bytes(settings, engine, "it") - RUNTIME_BYTES[engine] - (GIB if engine == "openvino" else 0)

    f16 = need("openvino", "f16")
    assert 250e6 < f16 < 350e6  # 135 million parameters, two bytes each, and the embedding
    assert need("openvino") == f16
    assert 0.5 * f16 < need("openvino", "q8_0") < 0.6 * f16
    assert need("transformers", "f32") == 2 * need("transformers")
    assert need("transformers") == f16
