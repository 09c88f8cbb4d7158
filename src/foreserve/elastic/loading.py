"""An encoder from its folder: over the weights that all workers of the machine share, where its files allow that."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from foreserve.elastic.folder import EncoderFacts
from foreserve.errors import EngineStartError

log = logging.getLogger(__name__)

_library = logging.getLogger("transformers.modeling_utils")

UNUSED = ".pooler."
"""In the names of weights that no vector is made of: pooling is our own, of the last layer's tokens."""

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def load(folder: Path, facts: EncoderFacts, weights: str, shared_weights: Sequence[str] = ()) -> tuple[Any, bool]:
    """The model, ready to infer, and whether its weights are shared. Raises EngineStartError in words."""
    transformers_logging.disable_progress_bar()
    auto = AutoModelForSequenceClassification if facts.cross else AutoModel
    model, is_shared = None, False
    if shared_weights:
        try:
            from foreserve.engines.transformers_shared import shared

            model, is_shared = shared(folder, DTYPES[weights], shared_weights, auto), True
        except Exception as error:  # of whatever kind: what is really wrong is told by the library's own loading
            log.warning("%s is loaded for this process alone, its shared files do not serve: %s", folder, error)
    if model is None:
        model = _loaded(auto, folder, weights, "" if facts.cross else UNUSED)
    return model.eval().requires_grad_(False), is_shared


def _loaded(auto: Any, folder: Path, weights: str, unused: str) -> Any:
    """By the library. Raises EngineStartError for files that lack weights, but for `unused` ones."""
    # It reports at length what is missing; what of that is wrong is told below, in words.
    _library.addFilter(_no_report)
    try:
        model, info = auto.from_pretrained(
            folder, dtype=DTYPES[weights], local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, MemoryError) as error:
        raise EngineStartError(f"transformers cannot load {folder}: {error}") from error
    finally:
        _library.removeFilter(_no_report)
    missing = sorted(each for each in info["missing_keys"] if not unused or unused not in f".{each}")
    if missing:
        raise EngineStartError(f"{folder} lacks weights of its model: {', '.join(missing[:5])}, {len(missing)} in all")
    return model


def _no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
