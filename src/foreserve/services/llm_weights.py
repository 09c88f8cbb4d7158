"""What the transformers engine only reads: the files of a checkpoint that can be used as they lie on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from foreserve.core import WeightsRef
from foreserve.devices import wanted_on
from foreserve.runtime.safetensors import NotSafetensors, read

INDEX: Final = "model.safetensors.index.json"
"""Which file has which tensor, where they are in several."""

_DTYPES: Final = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
"""By the precision that is wanted: its name in a safetensors header."""


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


def shared_weights(engine: str, options: Mapping[str, Any]) -> tuple[WeightsRef, ...]:
    """The files that an engine with these options can map, named by their paths. Reads headers only.

    Empty where they have to be converted, or where the folder has anything that changes what they mean: then the
    engine loads them by itself, which is also where damaged files are told of.
    """
    if engine != "transformers" or "shared_weights" in options:
        return ()
    folder = Path(options["model_path"]).expanduser().absolute()
    wanted = _DTYPES.get(options.get("weights", "bf16"))
    if (folder / "adapter_config.json").exists():
        return ()
    files = _files(folder)
    if not all(_has(file, wanted) for file in files):
        return ()
    device = wanted_on(options.get("device", "cpu"))
    return tuple(WeightsRef(name=str(file), source=str(file), device=device) for file in files)


def _files(folder: Path) -> list[Path]:
    """As the library looks for them; a folder may have more, of other forms."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    try:
        index = msgspec.json.decode((folder / INDEX).read_bytes(), type=_Index)
    except (OSError, msgspec.DecodeError):
        return []
    return [folder / name for name in sorted(set(index.weight_map.values()))]


def _has(file: Path, dtype: str | None) -> bool:
    """Whether every tensor of a file is in this dtype."""
    try:
        with file.open("rb") as opened:
            return all(tensor.dtype == dtype for tensor in read(opened.fileno(), str(file)).values())
    except (OSError, ValueError, NotSafetensors):
        return False
