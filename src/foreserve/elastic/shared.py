"""Which of an encoder's files can be mapped as they lie on the disk. Reads headers; needs no torch."""

from __future__ import annotations

from pathlib import Path

from foreserve.core import WeightsRef
from foreserve.runtime.safetensors import NotSafetensors, read

_DTYPES = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
_TABLES = ("I64", "I32")
"""Of numbers of positions, which older files hold and models make by themselves."""


def shared_files(folder: Path, weights: str) -> tuple[WeightsRef, ...]:
    """The folder's `model.safetensors`, if all its weights are in this precision; else nothing."""
    file = folder.absolute() / "model.safetensors"
    try:
        with file.open("rb") as opened:
            found = {tensor.dtype for tensor in read(opened.fileno(), str(file)).values()}
    except (OSError, ValueError, NotSafetensors):
        return ()
    if found - {_DTYPES[weights], *_TABLES}:
        return ()
    return (WeightsRef(name=str(file), source=str(file)),)
