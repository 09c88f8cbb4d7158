"""A Hugging Face checkpoint folder from a GGUF file, as transformers and vLLM load it. Imports torch when called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from foreserve.errors import ConfigError

Progress = Callable[[float, str], None]


def checkpoint(source: Path, folder: Path, weights: str, progress: Progress | None = None) -> None:
    """Write the model of the GGUF file `source` to `folder` in `weights` (`bf16` or `f32`), with its tokenizer.

    transformers' own way leaves a quantisation entry on the model that it then refuses to save: config, model and
    generation config are therefore made anew. Raises ConfigError where transformers cannot read the file.
    """
    tell = progress or (lambda done, what: None)
    torch, transformers = _packages()
    tell(0.0, "reading the GGUF file with transformers")
    try:
        tokenizer, loaded = _load(torch, transformers, source)
    except Exception as error:  # transformers raises many kinds for what it does not support
        raise ConfigError(f"{source}: transformers cannot read it: {error}") from error
    tell(0.6, "making the checkpoint")
    ids = {f"{which}_token_id": getattr(tokenizer, f"{which}_token_id") for which in ("bos", "eos", "pad")}
    plain = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        plain.pop(key, None)
    config = type(loaded.config)(**{**plain, **ids, "architectures": [type(loaded).__name__]})
    model = type(loaded)(config)
    missing, unexpected = model.load_state_dict(loaded.state_dict(), strict=False)
    if missing or unexpected:
        raise ConfigError(f"{source}: transformers' model does not fit: {(missing + unexpected)[:4]}")
    del loaded
    model.tie_weights()
    model.generation_config = transformers.GenerationConfig(**ids)
    tokenizer.model_max_length = config.max_position_embeddings
    tell(0.8, f"writing the checkpoint in {weights}")
    model.to(torch.bfloat16 if weights == "bf16" else torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tell(1.0, "checkpoint written")


def _load(torch: Any, transformers: Any, source: Path) -> tuple[Any, Any]:
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    quantization = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, quantization_config=quantization
    )
    return tokenizer, model


def save_tokenizer(source: Path, folder: Path) -> None:
    """Write `tokenizer.json` for a Hugging Face folder that has none, through transformers. Raises ConfigError."""
    _, transformers = _packages()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(source), use_fast=True)
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    except Exception as error:
        raise ConfigError(f"{source}: holds no tokenizer.json, and none could be made of it: {error}") from error


def _packages() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(f"this model needs the package {error.name}: pip install foreserve[torch]") from None
    return torch, transformers
