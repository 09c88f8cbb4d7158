"""An app from its file: Python (`app = foreserve.App(...)`) or YAML with the same words.

In YAML, relative paths of models, targets and interpreters are meant from the file's own folder. In Python they are
Python's: from the working directory, or built from `__file__`.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import msgspec

from foreserve import registry
from foreserve.app import App
from foreserve.errors import ConfigError
from foreserve.parsing import parse
from foreserve.pyfile import load_file
from foreserve.settings import (
    AppSettings,
    ClusterSettings,
    MachineSettings,
    RuntimeSettings,
    ServerSettings,
    StateSettings,
)
from foreserve.yamlfile import Document

_PATHS = ("model", "target", "python", "folder", "graph", "log")
"""Keys whose values may be paths."""

_SHOW = 8
"""How many neighbours an error about a missing file names."""


def load_app_file(path: str) -> App:
    """The app in `path`: `app.py`, `app.py:name` or `app.yaml`. Raises ConfigError naming the place and what is valid.

    A Python file is run once, under a module name of its own that stays in `sys.modules`; it can import what
    lies beside it (see `pyfile`).
    """
    file, name = _split(path)
    _check_there(file)
    if file.suffix == ".py":
        return _choose(_run(file), file, name)
    if name is not None:
        raise ConfigError(f"{path}: a name after the colon chooses an app in a Python file; a YAML file has one app")
    return _from_yaml(file)


def _split(path: str) -> tuple[Path, str | None]:
    """`app.py:name` as file and name; a colon elsewhere belongs to the path."""
    head, colon, tail = path.rpartition(":")
    if colon and tail.isidentifier() and not Path(path).exists():
        return Path(head), tail
    return Path(path), None


def _check_there(file: Path) -> None:
    if file.is_file():
        if file.suffix not in (".py", ".yaml", ".yml"):
            raise ConfigError(f"{file}: an app file ends in .py, .yaml or .yml")
        return
    folder = file if file.is_dir() else file.parent
    while not folder.is_dir():
        folder = folder.parent
    near = sorted(each.name for each in folder.iterdir() if each.suffix in (".py", ".yaml", ".yml"))
    close = difflib.get_close_matches(file.name, near, n=1)
    hint = f"did you mean {str(folder / close[0])!r}? " if close else ""
    more = ", …" if len(near) > _SHOW else ""
    there = f"{hint}there: {', '.join(near[:_SHOW])}{more}" if near else "no .py, .yaml or .yml file is there"
    what = "is a folder, not an app file" if file.is_dir() else "no such app file"
    raise ConfigError(f"{file}: {what}; in {folder.resolve()}: {there}")


# --- Python


def _run(file: Path) -> ModuleType:
    """The file as a module. Whatever it raises is a ConfigError with the file's own line."""
    try:
        return load_file(file)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ConfigError(_told(error, file, file.resolve())) from error


def _told(error: BaseException, file: Path, full: Path) -> str:
    """`app.py, line 12: ModuleNotFoundError: …`, at the deepest line that is the file's own."""
    if isinstance(error, SyntaxError) and error.filename == str(full):
        code = f" in `{error.text.strip()}`" if error.text else ""
        return f"{file}, line {error.lineno}: {error.msg}{code}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(full)]
    place = f"{file}, line {lines[-1]}" if lines else str(file)
    if isinstance(error, ConfigError):
        return f"{place}: {error}"
    if isinstance(error, SystemExit):
        return f"{place}: it exits while it is being read; keep what is run by hand under `if __name__ == '__main__':`"
    if isinstance(error, SyntaxError):
        return f"{place}: {error.filename}, line {error.lineno}: {error.msg}"
    return f"{place}: {type(error).__name__}: {error}"


def _choose(module: ModuleType, file: Path, name: str | None) -> App:
    apps = {key: value for key, value in vars(module).items() if isinstance(value, App)}
    if name is not None:
        if name in apps:
            return apps[name]
        if hasattr(module, name):
            kind = type(getattr(module, name)).__name__
            raise ConfigError(f"{file}: {name!r} is {kind}, not an App{registry.choices(name, apps)}")
        raise ConfigError(f"{file}: there is no {name!r}{registry.choices(name, apps)}")
    different = {id(value): key for key, value in reversed(apps.items())}
    if len(different) == 1:
        return next(iter(apps.values()))
    if "app" in apps:
        return apps["app"]
    if apps:
        names = list(apps)
        raise ConfigError(f"{file}: several apps ({', '.join(names)}); choose one, as in {file}:{names[0]}")
    raise ConfigError(f'{file}: no app; write one, as in `app = foreserve.App(chat=foreserve.LLM("smollm2"))`')


# --- YAML


def _from_yaml(file: Path) -> App:
    document = Document.read(file)
    with document.lines_in_errors():
        return _build(document)


def _build(document: Document) -> App:
    data, where = document.data, document.where
    valid = ("services", *AppSettings.__struct_fields__)
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: an app file is keys and values; valid: {', '.join(valid)}")
    for key in data:
        if key not in valid:
            raise ConfigError(f"{where}: {key}: unknown key {key!r}{registry.choices(str(key), valid)}")
    services = data.get("services")
    if not isinstance(services, Mapping) or not services:
        example = "services: {chat: {kind: llm, model: smollm2}}"
        raise ConfigError(f"{where}: services: at least one service by name is needed, as in `{example}`")
    rest = _from_folder({name: data.get(name) or {} for name in AppSettings.__struct_fields__}, document.folder)
    server = parse(rest["server"], ServerSettings, f"{where}: server")
    state = parse(rest["state"], StateSettings, f"{where}: state")
    machine = parse(rest["machine"], MachineSettings, f"{where}: machine")
    runtime = parse(rest["runtime"], RuntimeSettings, f"{where}: runtime")
    cluster = parse(rest["cluster"], ClusterSettings, f"{where}: cluster")
    kinds = {name: _service(name, words, document) for name, words in services.items()}
    try:
        return App(server=server, state=state, machine=machine, runtime=runtime, cluster=cluster, **kinds)
    except ConfigError as error:
        raise ConfigError(f"{where}: services: {error}") from None


def _service(name: Any, words: Any, document: Document) -> Any:
    """One service, made by its kind."""
    if not isinstance(name, str):
        raise ConfigError(f'{document.where}: services: the name {name!r} is not text; write "{name}"')
    if name in AppSettings.__struct_fields__:
        raise ConfigError(f"{document.where}: services.{name}: no service can be called {name!r}; choose another name")
    where = f"{document.where}: services.{name}"
    kinds = ", ".join(registry.names("kind"))
    if not isinstance(words, Mapping):
        raise ConfigError(f"{where}: a service is keys and values, `kind` among them; valid kinds: {kinds}")
    if "kind" not in words:
        raise ConfigError(f"{where}: missing key 'kind'; valid: {kinds}")
    if not isinstance(words["kind"], str):
        raise ConfigError(f"{where}.kind is {words['kind']!r}; valid: {kinds}")
    try:
        kind = registry.load("kind", words["kind"], f"{where}.kind")
    except ImportError as error:
        raise ConfigError(f"{where}.kind: {words['kind']!r} cannot be loaded here: {error}") from error
    words = _from_folder({key: value for key, value in words.items() if key != "kind"}, document.folder)
    settings = _settings_of(kind)
    return kind.from_settings(words if settings is None else parse(words, settings, where), where)


def _settings_of(kind: Any) -> type[Any] | None:
    """What `kind.from_settings(settings, where)` takes, by its annotation; `None` where that is the plain words."""
    hints = get_type_hints(kind.from_settings)
    first = next(iter(hints.values()), None)
    return first if isinstance(first, type) and issubclass(first, msgspec.Struct) else None


def _from_folder(words: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`words` with relative paths as seen from `folder`, at this level and the next."""
    made: dict[str, Any] = {}
    for key, value in words.items():
        if isinstance(value, Mapping) and key not in ("env", "engine_options", "policy_options", "weights"):
            made[key] = _from_folder(value, folder)
        else:
            made[key] = _located(value, folder) if key in _PATHS and isinstance(value, str) else value
    return made


def _located(value: str, folder: Path) -> str:
    """A path as seen from `folder`; what only could be one (a packaged model, a module) stays unless it lies there.

    Links are kept: the interpreter of a virtual environment is one, and is known by its place.
    """
    head, colon, tail = value.rpartition(":")
    path, rest = (head, colon + tail) if colon and head.endswith(".py") else (value, "")
    if path.startswith("~"):
        return str(Path(path).expanduser()) + rest
    looks = "/" in path or path.endswith((".gguf", ".py"))
    if Path(path).is_absolute() or not (looks or (folder / path).exists()):
        return value
    return str(folder / path) + rest
