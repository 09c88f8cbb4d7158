"""The weights that a function declares, as its runtime loads them; what is wrong with them is told beforehand."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from foreserve.core import WeightsRef
from foreserve.devices import wanted_on
from foreserve.errors import ConfigError
from foreserve.services.function_target import file_of
from foreserve.settings import FunctionSettings, WeightsSettings

_LOADER = re.compile(r"(?P<file>.+\.py)|(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)")
_ATTRIBUTE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def weights_of(settings: FunctionSettings) -> tuple[WeightsRef, ...]:
    """One for each name. Relative paths are seen from the function's file, or from here where a module is named."""
    file = file_of(settings.target)
    folder = file.parent if file is not None else Path.cwd()
    device = wanted_on(settings.device)
    refs = (_ref(name, source, folder) for name, source in settings.weights_by_name.items())
    return tuple(msgspec.structs.replace(ref, device=device) for ref in refs)


def _ref(name: str, given: str | WeightsSettings, folder: Path) -> WeightsRef:
    source, sha256 = (given, None) if isinstance(given, str) else (given.source, given.sha256)
    sha256 = sha256 and sha256.lower()
    if "://" in source:
        return WeightsRef(name=name, source=source, kind="uri", sha256=sha256)
    place, colon, attribute = source.rpartition(":")
    if colon and _ATTRIBUTE.fullmatch(attribute) and (found := _LOADER.fullmatch(place)):
        at = str(_path(place, folder)) if found["file"] else place
        return WeightsRef(name=name, source=f"{at}:{attribute}", kind="loader", sha256=sha256)
    return WeightsRef(name=name, source=str(_path(source, folder)), kind="file", sha256=sha256)


def _path(source: str, folder: Path) -> Path:
    path = Path(source).expanduser()
    return path if path.is_absolute() else folder / path


def check_weights(refs: tuple[WeightsRef, ...], where: str) -> None:
    """Whether the files are there, and have the contents that they must have. Raises ConfigError naming the place."""
    for ref in refs:
        place = f"{where}: weights" if ref.name == "weights" else f"{where}: weights.{ref.name}"
        if ref.kind == "uri":
            continue  # whoever loads it says what is wrong
        path = Path(ref.source.rpartition(":")[0]) if ref.kind == "loader" else Path(ref.source)
        if ref.kind == "loader" and path.suffix != ".py":
            continue  # a module is looked for by the interpreter that is to run it
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not there"
            raise ConfigError(f"{place}: {path} {what}; valid: a safetensors file, an address, a loader as module:name")
        if ref.kind == "file" and ref.sha256 is not None:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != ref.sha256:
                raise ConfigError(f"{place}: the sha256 of {path} is {found}, not {ref.sha256}")
