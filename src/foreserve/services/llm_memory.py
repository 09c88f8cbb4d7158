"""How much memory one replica of a language model will want, told before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from foreserve.models.catalog import Source, locate
from foreserve.settings import LLMSettings

GIB = 2**30

RUNTIME_BYTES = {"openvino": 300 * 2**20, "transformers": 700 * 2**20}
"""What an engine's process holds beside weights and KV cache."""

_FLOAT_BYTES = {"bf16": 2.0, "f32": 4.0}


def memory_bytes(settings: LLMSettings, engine: str, where: str) -> int:
    """Bytes of one replica: weights in the form they are kept in, KV cache, and the engine itself.

    An estimate from the model's files, whose weights are not read. Raises ConfigError when the model is not there or
    its header is damaged.
    """
    weights = _weights_bytes(locate(settings.model, where), settings.weights, engine)
    cache = settings.kv_cache_gb * GIB if engine == "openvino" else 0.0
    return int(weights + cache) + RUNTIME_BYTES.get(engine, 0)


def _weights_bytes(source: Source, weights: str | None, engine: str) -> float:
    if source.form != "gguf":
        return sum(file.stat().st_size for file in _weight_files(source.path))
    try:
        from foreserve.models.gguf import TARGETS, converted_size, precision
        from foreserve.models.gguf_file import read_header
    except ImportError:  # the engine's extra is missing, which is a finding of its own
        return source.path.stat().st_size
    header = read_header(source.path)
    if engine == "openvino":
        return converted_size(header, weights if weights in TARGETS else precision(header) or "f16")
    return converted_size(header, "f16") / 2 * _FLOAT_BYTES.get(weights or "bf16", 2.0)


def _weight_files(folder: Path) -> list[Path]:
    for pattern in ("*.safetensors", "pytorch_model*.bin", "openvino_model.bin"):
        if found := sorted(folder.glob(pattern)):
            return found
    return []
