"""What a model folder says of an encoder: how texts become vectors, and which tasks were trained on it. Reads JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from foreserve.elastic.payload import TaskFacts
from foreserve.errors import ConfigError
from foreserve.models.facts import read_json

POOLINGS = ("cls", "mean", "max")

_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}

KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


class EncoderFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An encoder as its folder tells it.

    `pooling` makes one vector of its tokens, which is then `normalised` or not. A text of more than `max_tokens` is cut
    there, as sentence-transformers does. `prompts` are words that go before a text, by name, and `default_prompt` the
    name of those that do where none is asked for. A `cross` encoder scores pairs of texts and gives no vectors.
    """

    name: str
    images: bool
    width: int
    model_type: str
    cross: bool = False
    pooling: str = "mean"
    normalised: bool = False
    max_tokens: int = 512
    lower_case: bool = False
    prompts: dict[str, str] = {}
    default_prompt: str | None = None
    pad_id: int = 0
    labels: list[str] = []
    image_size: int = 0


def read_folder(folder: Path) -> EncoderFacts:
    """The facts of a Hugging Face or sentence-transformers folder. Raises ConfigError naming what cannot be served."""
    config = read_json(folder / "config.json")
    width = config.get("hidden_size") or config.get("dim")
    if not isinstance(width, int):
        raise ConfigError(f"{folder / 'config.json'}: no `hidden_size`; an encoder has one")
    kind = str(config.get("model_type", ""))
    images = "image_size" in config or (folder / "preprocessor_config.json").is_file()
    labels = config.get("id2label") or {}
    architectures = config.get("architectures") or [""]
    common: dict[str, Any] = {
        "name": folder.name,
        "images": images,
        "width": width,
        "model_type": kind,
        "labels": [str(labels[key]) for key in sorted(labels, key=lambda key: int(key))] if labels else [],
    }
    if images:
        size = config.get("image_size", 224)
        return EncoderFacts(pooling="cls", image_size=max(size) if isinstance(size, list) else int(size), **common)
    most = config.get("max_position_embeddings", 512) - (2 if "roberta" in kind or kind == "camembert" else 0)
    return _sentences(
        folder,
        cross=str(architectures[0]).endswith("ForSequenceClassification"),
        max_tokens=int(most),
        pad_id=int(config.get("pad_token_id") or 0),
        **common,
    )


def _sentences(folder: Path, max_tokens: int, **common: Any) -> EncoderFacts:
    """What the files of sentence-transformers add; without them the mean of all tokens, as that library has it."""
    bert = read_json(folder / "sentence_bert_config.json", optional=True)
    own = read_json(folder / "config_sentence_transformers.json", optional=True)
    pooling, normalised = "mean", False
    modules = folder / "modules.json"
    for module in msgspec.json.decode(modules.read_bytes(), type=list[dict[str, Any]]) if modules.is_file() else []:
        name = str(module.get("type", "")).rpartition(".")[2]
        if name not in KNOWN_MODULES:
            raise ConfigError(
                f"{modules}: a module {name!r} is not known; valid: {', '.join(KNOWN_MODULES)}, in this order"
            )
        if name == "Pooling":
            pooling = _pooling(folder / str(module.get("path", "")) / "config.json")
        normalised = normalised or name == "Normalize"
    return EncoderFacts(
        pooling=pooling,
        normalised=normalised,
        max_tokens=min(max_tokens, int(bert.get("max_seq_length") or max_tokens)),
        lower_case=bool(bert.get("do_lower_case", False)),
        prompts=dict(own.get("prompts") or {}),
        default_prompt=own.get("default_prompt_name"),
        **common,
    )


def _pooling(file: Path) -> str:
    config = read_json(file)
    named = config.get("pooling_mode")
    if isinstance(named, str) and named in POOLINGS:
        return named
    chosen = [mode for mode, value in config.items() if mode.startswith("pooling_mode_") and value is True]
    if len(chosen) == 1 and chosen[0] in _MODES:
        return _MODES[chosen[0]]
    raise ConfigError(f"{file}: pooling by {', '.join(chosen) or 'nothing'}; one of {', '.join(POOLINGS)} is served")


def read_tasks(folder: Path, facts: EncoderFacts) -> dict[str, TaskFacts]:
    """The tasks in a folder, by name: those of its folders that have a `task.json`.

    Raises ConfigError for one that is broken or was trained on an encoder of another width.
    """
    if not folder.is_dir():
        raise ConfigError(f"tasks: {folder} is no folder; `foreserve adapt` makes one")
    found: dict[str, TaskFacts] = {}
    for file in sorted(folder.glob("*/task.json")):
        try:
            task = msgspec.json.decode(file.read_bytes(), type=TaskFacts)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{file}: cannot be read: {error}") from None
        if task.width != facts.width:
            raise ConfigError(f"{file}: trained on an encoder {task.width} wide; {facts.name} is {facts.width} wide")
        if not task.accuracy or not set(task.kept) <= task.accuracy.keys() or not task.kept:
            raise ConfigError(f"{file}: `kept` must name settings of `accuracy`, at least one")
        found[file.parent.name] = task
    if not found:
        raise ConfigError(f"tasks: {folder} has no task in it (NAME/task.json); `foreserve adapt` makes one")
    return found
