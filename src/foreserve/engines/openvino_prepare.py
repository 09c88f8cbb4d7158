"""The form of a model that OpenVINO starts fastest from: its own folder, made once from an f16 or Q8_0 GGUF file.

Building a pipeline from GGUF translates the file and its tokenizer each time, which takes three times as long as
loading the folder. The folder holds the model, the tokenizer (constrained decoding needs it) and `foreserve.json`.
"""

from __future__ import annotations

import fcntl
import importlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from foreserve.errors import EngineStartError

log = logging.getLogger(__name__)

FORM = 1
"""The shape of a prepared folder; raised when it changes, so that older ones are made anew."""

FACTS = "foreserve.json"
MODEL = "openvino_model.xml"

# What `general.file_type` of a GGUF file says of its weights. OpenVINO's reader degrades the other types: with Q4_1 the
# text leaves the reference after a few tokens.
_WEIGHTS = {1: "f16", 7: "q8_0"}

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
"""Properties under which a request's answer does not depend on who else is in the batch."""

# OpenVINO reports each import to its maker, from a thread that it starts; without the package that does so it does
# not. A server says nothing of itself to others unasked, and a process that runs threads cannot be forked.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

LIBRARY_ERRORS = (RuntimeError, LookupError, ValueError, TypeError, MemoryError)
"""What a C++ exception of the library becomes: its model reader alone raises several of these."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a prepared folder holds and what it was made from. It is made anew when any of the latter differs.

    `kv_block_bytes` is the memory of one block of the KV cache (0: not known), `..._exact` that in exact mode.
    """

    context_tokens: int
    vocab_size: int
    weights: str
    kv_block_bytes: int = 0
    kv_block_bytes_exact: int = 0
    source: str = ""
    source_bytes: int = 0
    source_mtime_ns: int = 0
    made_by: str = ""


def require(package: str) -> Any:
    """Import one of the packages of the extra `openvino`. Raises EngineStartError that says how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise EngineStartError(f"{error}; install it with: pip install 'foreserve[openvino]'") from error


def prepared(model: Path, folder: Path | None = None) -> tuple[Path, Facts]:
    """The folder to load `model` from, made if it is not there, and what is in it.

    `model` is a GGUF file or already a folder of OpenVINO's. `folder` is where to make it: without one, beside the file
    under its name with `.openvino`. Safe to call from several processes at once. Raises EngineStartError in words.
    """
    if model.is_dir():
        return model, _facts_of(model)
    if not model.is_file():
        raise EngineStartError(f"there is no model file {model}")
    folder = folder or model.with_name(model.stem + ".openvino")
    if (facts := _current(model, folder)) is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(folder.name + ".lock")):
            if (facts := _current(model, folder)) is None:  # another process may have made it meanwhile
                facts = _make(model, folder)
    return folder, facts


def _stamp(model: Path) -> tuple[str, int, int, str]:
    stat = model.stat()
    made_by = f"form {FORM}, openvino-genai {require('openvino_genai').__version__}"
    return model.name, stat.st_size, stat.st_mtime_ns, made_by


def _current(model: Path, folder: Path) -> Facts | None:
    try:
        facts = msgspec.json.decode((folder / FACTS).read_bytes(), type=Facts)
    except (OSError, msgspec.DecodeError):
        return None
    made_from = (facts.source, facts.source_bytes, facts.source_mtime_ns, facts.made_by)
    return facts if made_from == _stamp(model) else None


def _facts_of(folder: Path) -> Facts:
    if not (folder / MODEL).is_file():
        raise EngineStartError(f"{folder} is no OpenVINO model: it has no {MODEL}")
    try:
        if (folder / FACTS).is_file():
            return msgspec.json.decode((folder / FACTS).read_bytes(), type=Facts)
        config = msgspec.json.decode((folder / "config.json").read_bytes())
        return Facts(
            context_tokens=config["max_position_embeddings"], vocab_size=config["vocab_size"], weights="openvino"
        )
    except (OSError, msgspec.DecodeError, KeyError) as error:
        raise EngineStartError(f"{folder}: neither {FACTS} nor config.json can be read: {error}") from error


def _make(model: Path, folder: Path) -> Facts:
    log.info("preparing %s for OpenVINO, once", model.name)
    name, size, mtime_ns, version = _stamp(model)
    context_tokens, vocab_size, weights = _read(model)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _convert(model, partial)
        facts = Facts(
            context_tokens=context_tokens, vocab_size=vocab_size, weights=weights,
            kv_block_bytes=_block_bytes(partial, {}), kv_block_bytes_exact=_block_bytes(partial, EXACT),
            source=name, source_bytes=size, source_mtime_ns=mtime_ns, made_by=version,
        )  # fmt: skip
        (partial / FACTS).write_bytes(msgspec.json.format(msgspec.json.encode(facts)))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except LIBRARY_ERRORS as error:
        raise EngineStartError(f"OpenVINO cannot read {model.name}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return facts


def _read(model: Path) -> tuple[int, int, str]:
    """Context length, vocabulary size and weight type, from the file's own fields."""
    gguf = require("gguf")
    try:
        fields = gguf.GGUFReader(model).fields
        architecture = fields["general.architecture"].contents()
        context = int(fields[f"{architecture}.context_length"].contents())
        vocabulary = len(fields["tokenizer.ggml.tokens"].data)
        file_type = int(fields["general.file_type"].contents())
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise EngineStartError(f"{model} is not a GGUF file of a language model: {error}") from error
    if file_type not in _WEIGHTS:
        valid = ", ".join(f"{name} ({number})" for number, name in _WEIGHTS.items())
        raise EngineStartError(f"{model.name} has weights of file type {file_type}; the engine takes {valid}")
    return context, vocabulary, _WEIGHTS[file_type]


def _convert(model: Path, folder: Path) -> None:
    """Have the pipeline write what it makes of the file beside the file: here, beside a link to it."""
    genai = require("openvino_genai")
    link = folder / "model.gguf"
    link.symlink_to(model.resolve())
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 1
    save = {"enable_save_ov_model": True}
    genai.ContinuousBatchingPipeline(str(link), scheduler, "CPU", save, save)
    link.unlink()
    if not (folder / MODEL).is_file():
        raise EngineStartError(f"OpenVINO wrote no {MODEL} for {model.name}")


def _block_bytes(folder: Path, properties: dict[str, Any]) -> int:
    """Bytes of one KV block, measured: the precision that the CPU chooses by itself is not told."""
    genai = require("openvino_genai")
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 1
    pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
    config = genai.GenerationConfig(max_new_tokens=1, ignore_eos=True, apply_chat_template=False)
    config.set_eos_token_id(0)
    tensor = require("openvino").Tensor(require("numpy").zeros((1, 1), dtype="int64"))
    handle = pipeline.add_request(0, tensor, config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    del handle
    return int(pipeline.get_metrics().kv_cache_size_in_bytes)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
