"""How much memory one replica of a language model will want, told before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from foreserve.models.catalog import Source, locate
from foreserve.models.facts import ModelFacts, from_folder, from_gguf
from foreserve.settings import LLMSettings

GIB = 2**30

RUNTIME_BYTES = {"openvino": 300 * 2**20, "transformers": 700 * 2**20, "vllm": 1800 * 2**20}
"""What an engine's process holds beside weights and KV cache."""

_FLOAT_BYTES = {"bf16": 2.0, "f32": 4.0}


def memory_bytes(settings: LLMSettings, engine: str, where: str) -> int:
    """Bytes of one replica: weights in the form they are kept in, KV cache, and the engine itself.

    An estimate from the model's files, whose weights are not read. Raises ConfigError when the model is not there or
    its header is damaged.
    """
    source = locate(settings.model, where)
    weights = _weights_bytes(source, settings.weights, engine)
    match engine:
        case "openvino" | "vllm":
            cache = settings.kv_cache_gb * GIB
        case "transformers":
            cache = _static_cache_bytes(settings, source)
        case _:
            cache = 0.0
    return int(weights + cache) + RUNTIME_BYTES.get(engine, 0)


def static_kv_tokens(settings: LLMSettings, facts: ModelFacts, weights: str | None) -> int:
    """Tokens that the batches of the transformers engine may hold: what `kv_cache_gb` has room for.

    At least one context, so that whatever can be asked for can run alone; at most a context for each row.
    `engine_options.kv_tokens` goes before all of that.
    """
    named = settings.engine_options.get("kv_tokens")
    if isinstance(named, int):
        return named
    context = min(settings.context_tokens or facts.context_tokens, facts.context_tokens)
    tokens = int(settings.kv_cache_gb * GIB / _kv_bytes_per_token(facts, weights))
    return min(max(context, tokens), settings.max_running * context)


def _kv_bytes_per_token(facts: ModelFacts, weights: str | None) -> float:
    """Keys and values are kept in the precision of the weights; `facts` has them at two bytes."""
    return facts.kv_bytes_per_token / 2 * _FLOAT_BYTES.get(weights or "bf16", 2.0)


def _static_cache_bytes(settings: LLMSettings, source: Source) -> float:
    if source.form != "gguf":
        facts = from_folder(source.path, 0)
    else:
        try:
            from foreserve.models.gguf_file import read_header
        except ImportError:  # the engine's extra is missing, which is a finding of its own
            return settings.kv_cache_gb * GIB
        facts = from_gguf(read_header(source.path))
    return static_kv_tokens(settings, facts, settings.weights) * _kv_bytes_per_token(facts, settings.weights)


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
