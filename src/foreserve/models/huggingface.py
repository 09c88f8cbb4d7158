"""A Hugging Face checkpoint folder from a GGUF file, as transformers and vLLM load it. Imports torch when called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from foreserve.errors import ConfigError
from foreserve.models.facts import ModelFacts

Progress = Callable[[float, str], None]


def checkpoint(
    source: Path, facts: ModelFacts, tokenizer: Path, folder: Path, weights: str, progress: Progress | None = None
) -> None:
    """Write the model of the GGUF file `source` to `folder` in `weights` (`bf16` or `f32`), with its `tokenizer.json`.

    transformers reads the tensors, but its model loaded from GGUF keeps a quantisation entry that it then refuses to
    save: config, model and generation config are made anew. Raises ConfigError where it cannot read the file.
    """
    tell = progress or (lambda done, what: None)
    torch, transformers = _packages()
    tell(0.0, "reading the GGUF file with transformers")
    try:
        config = _config(transformers, source, facts)
        with torch.device("meta"):  # names and shapes alone; the tensors take their places below
            model = transformers.AutoModelForCausalLM.from_config(config)
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        dtype = torch.bfloat16 if weights == "bf16" else torch.float32
        tensors = load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=model, torch_dtype=dtype)
        _fill(model, tensors["tensors"])
    except Exception as error:  # transformers raises many kinds for what it does not support
        raise ConfigError(f"{source}: transformers cannot read it: {error}") from error
    tell(0.7, f"writing the checkpoint in {weights}")
    model.to(dtype)
    model.generation_config = transformers.GenerationConfig(**_ids(facts))
    model.save_pretrained(folder)
    _save_tokenizer(transformers, facts, tokenizer, folder)
    tell(1.0, "checkpoint written")


def _config(transformers: Any, source: Path, facts: ModelFacts) -> Any:
    found = transformers.AutoConfig.from_pretrained(str(source.parent), gguf_file=source.name)
    plain = found.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        plain.pop(key, None)
    return type(found).from_dict({**plain, **_ids(facts)})


def _ids(facts: ModelFacts) -> dict[str, Any]:
    pad = facts.eos_ids[0] if facts.eos_ids else None
    eos = list(facts.eos_ids) if len(facts.eos_ids) > 1 else pad
    return {"bos_token_id": facts.bos_id, "eos_token_id": eos, "pad_token_id": pad}


def _fill(model: Any, tensors: dict[str, Any]) -> None:
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty or unexpected:
        raise ConfigError(f"its tensors do not fit the model: {', '.join((*empty, *unexpected)[:4])}")
    shared = {name for name in missing if model.get_parameter(name) is model.get_input_embeddings().weight}
    if set(missing) - shared:
        raise ConfigError(f"tensors are missing: {', '.join(sorted(set(missing) - shared)[:4])}")


def _save_tokenizer(transformers: Any, facts: ModelFacts, file: Path, folder: Path) -> None:
    named = {"bos_token": facts.bos_token, "eos_token": facts.eos_token, "pad_token": facts.eos_token}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        model_max_length=facts.context_tokens,
        clean_up_tokenization_spaces=False,
        **{key: token for key, token in named.items() if token},
    )
    tokenizer.chat_template = facts.chat_template
    tokenizer.save_pretrained(folder)


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
