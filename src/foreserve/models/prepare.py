"""A model in the form an engine wants, made once: its weights, a `tokenizer.json` and its facts.

|source|`openvino`|`transformers`, `vllm`|
|---|---|---|
|GGUF file|a GGUF file in `f16` or `q8_0`, in place if it is one|a Hugging Face folder in `bf16` or `f32`|
|Hugging Face folder|-|in place|
|OpenVINO folder|in place|-|

Weights that are used in place are never copied; the cache then holds the tokenizer and the facts alone.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from foreserve.errors import ConfigError
from foreserve.models.cache import Cache
from foreserve.models.catalog import Source
from foreserve.models.facts import ModelFacts, from_folder
from foreserve.registry import choices
from foreserve.settings import Environment

Progress = Callable[[float, str], None]

VERSION: Final = 1
"""Part of every cache key; raise it when what a prepared folder holds changes."""

WEIGHTS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("gguf", "openvino"): ("f16", "q8_0"),
    ("gguf", "transformers"): ("bf16", "f32"),
    ("gguf", "vllm"): ("bf16", "f32"),
    ("huggingface", "transformers"): ("bf16", "f32"),
    ("huggingface", "vllm"): ("auto", "bf16", "f16", "f32"),
    ("openvino", "openvino"): (),
}
"""The precisions of each pair of form and engine, the default first. Pairs that are not here do not go together."""

KEPT_AS: Final = {"vllm": "transformers"}
"""Engines that take the very form of another, and share what was prepared for it."""

GGUF_ON_OPENVINO: Final = ("llama", "qwen2", "qwen3")
"""Architectures that OpenVINO reads from a GGUF file."""


class PreparedModel(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine loads: `weights_path` is a file or a folder in the precision `weights`.

    `folder` always holds `tokenizer.json` and `facts.json`. `weights` of a Hugging Face folder is the precision to
    load it in, and `None` for an OpenVINO folder, which has its own.
    """

    folder: Path
    weights_path: Path
    weights: str | None
    facts: ModelFacts


def prepare(
    source: Source, engine: str, weights: str | None, progress: Progress | None = None, cache: Path | None = None
) -> PreparedModel:
    """The model for `engine` (`openvino`, `transformers`, `vllm`) in the precision `weights` (`None`: the default).

    Slow the first time (seconds to minutes), quick after it. `progress(done, what)` is told how far it is, from 0 to
    1. Raises ConfigError where the pair does not go together, the model's files are not usable or the disk is full.
    """
    plan = _Plan(source, engine, weights, Cache(cache or Environment.read().cache / "models"), progress)
    folder = plan.cache.prepared(plan.key, plan.build)
    return PreparedModel(
        folder=folder,
        weights_path=source.path if plan.in_place else folder / plan.file,
        weights=plan.weights,
        facts=msgspec.json.decode((folder / "facts.json").read_bytes(), type=ModelFacts),
    )


def prepared_already(source: Source, engine: str, weights: str | None, cache: Path | None = None) -> bool:
    """Whether `prepare` would find everything done. Raises as it does where the pair does not go together."""
    plan = _Plan(source, engine, weights, Cache(cache or Environment.read().cache / "models"), None)
    return plan.cache.find(plan.key) is not None


class _Plan:
    """What is to be made of a source, and under which key."""

    def __init__(
        self, source: Source, engine: str, weights: str | None, cache: Cache, progress: Progress | None
    ) -> None:
        self.source = source
        self.engine = engine
        self.cache = cache
        self.progress = progress
        own = _own_precision(source) if engine == "openvino" else None
        self.weights = _weights(source, engine, weights, own)
        self.in_place = source.form != "gguf" or self.weights == own
        self.file = "model.gguf" if engine == "openvino" else "model"

    @property
    def key(self) -> str:
        content = (
            self.cache.digest(self.source.path) if self.source.form == "gguf" else _folder_digest(self.source.path)
        )
        kept = "in-place" if self.in_place else self.weights
        return f"{content[:32]}-{KEPT_AS.get(self.engine, self.engine)}-{kept}-v{VERSION}"

    def build(self, folder: Path) -> None:
        """Fill `folder`: weights where they are not used in place, tokenizer, facts."""
        facts = self._from_gguf(folder) if self.source.form == "gguf" else self._from_folder(folder)
        (folder / "facts.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts)))

    def _from_gguf(self, folder: Path) -> ModelFacts:
        from foreserve.models import facts, gguf, gguf_tokenizer
        from foreserve.models.gguf_file import read_header

        header = read_header(self.source.path)
        known = facts.from_gguf(header)
        if self.engine == "openvino" and known.architecture not in GGUF_ON_OPENVINO:
            raise ConfigError(
                f"{self.source.path}: OpenVINO does not read GGUF files of the architecture {known.architecture!r}; "
                f"valid: {', '.join(GGUF_ON_OPENVINO)}, or engine `transformers`"
            )
        # Before the weights: a tokenizer that is not supported is known in a second.
        gguf_tokenizer.from_gguf(header).save(str(folder / "tokenizer.json"))
        if self.in_place:
            return known
        assert self.weights is not None
        if self.engine == "openvino":
            self._room_for(gguf.converted_size(header, self.weights))
            return facts.from_gguf(gguf.convert(header, folder / self.file, self.weights, self.progress))
        from foreserve.models import huggingface

        self._room_for(2 * gguf.converted_size(header, "f16"))
        tokenizer = folder / "tokenizer.json"
        huggingface.checkpoint(self.source.path, known, tokenizer, folder / self.file, self.weights, self.progress)
        size = sum(path.stat().st_size for path in (folder / self.file).glob("*.safetensors"))
        return msgspec.structs.replace(known, weights_bytes=size)

    def _from_folder(self, folder: Path) -> ModelFacts:
        path = self.source.path
        if (path / "tokenizer.json").is_file():
            shutil.copyfile(path / "tokenizer.json", folder / "tokenizer.json")
        else:
            from foreserve.models import huggingface

            huggingface.save_tokenizer(path, folder)
        return from_folder(path, sum(file.stat().st_size for file in _weight_files(path)))

    def _room_for(self, size: int) -> None:
        free = shutil.disk_usage(self.cache.root).free
        if size + 2**26 > free:
            raise ConfigError(
                f"the model cache {self.cache.root} has {free / 2**30:.1f} GiB left; "
                f"{self.source.name} for {self.engine} needs {size / 2**30:.1f}; set FORESERVE_CACHE"
            )


def _weights(source: Source, engine: str, weights: str | None, own: str | None) -> str | None:
    valid = WEIGHTS.get((source.form, engine))
    if valid is None:
        engines = [name for form, name in WEIGHTS if form == source.form]
        forms = [form for form, name in WEIGHTS if name == engine]
        words = f"; {engine} takes: {', '.join(forms)}" if forms else ""
        raise ConfigError(
            f"engine {engine!r} cannot run {source.path} ({source.form}){choices(engine, engines)} for it{words}"
        )
    if weights is None:
        return own or (valid[0] if valid else None)
    if weights not in valid:
        hint = choices(weights, valid) or "; an OpenVINO folder has its own, leave it out"
        raise ConfigError(f"weights {weights!r} is not for engine {engine!r} and {source.path}{hint}")
    return weights


def _own_precision(source: Source) -> str | None:
    """The precision a GGUF file already has, so that a model in f16 or Q8_0 is neither copied nor blown up."""
    if source.form != "gguf":
        return None
    from foreserve.models.gguf import precision
    from foreserve.models.gguf_file import read_header

    return precision(read_header(source.path))


def _weight_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    return found or sorted(folder.glob("openvino_model.bin"))


def _folder_digest(folder: Path) -> str:
    """What the prepared form of a folder depends on: its place, its small files' content."""
    sha = hashlib.sha256(str(folder).encode())
    names = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja")
    more = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "special_tokens_map.json")
    for name in (*names, *more):
        path = folder / name
        if path.is_file():
            sha.update(f"{name}:{path.stat().st_size}:".encode())
            sha.update(path.read_bytes())
    for path in _weight_files(folder):
        sha.update(f"{path.name}:{path.stat().st_size}:".encode())
    return sha.hexdigest()
