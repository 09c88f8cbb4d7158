"""What `"module:attribute"` or `"file.py:attribute"` names, and an engine of it; what is wrong is said in words."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from foreserve.errors import EngineStartError
from foreserve.pyfile import load_file

EngineFactory = Callable[..., Any]


def load_factory(factory: str) -> EngineFactory:
    """The callable that `factory` names. Raises EngineStartError that names what is missing and where."""
    place, colon, attribute = factory.rpartition(":")
    if not (colon and place and attribute):
        raise EngineStartError(f'{factory!r} names no callable; valid: "module:attribute" or "file.py:attribute"')
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise EngineStartError(missing_package(factory, error)) from error
    except EngineStartError:
        raise
    except Exception as error:
        raise EngineStartError(f"{factory}: cannot be imported: {type(error).__name__}: {error}") from error
    try:
        found = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        from foreserve.registry import choices  # in an error alone: it takes as long as a worker's other imports

        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise EngineStartError(f"{factory}: {place} has no {attribute!r}{choices(attribute, names)}") from None
    if not callable(found):
        raise EngineStartError(f"{factory}: {attribute!r} is a {type(found).__name__}, not a class or function")
    return found


def make(load: Callable[[str], EngineFactory], factory: str, options: dict[str, Any]) -> Any:
    """The engine itself. Raises EngineStartError when the factory does not load, or does not take these options."""
    callable_ = load(factory)
    try:
        signature = inspect.signature(callable_)
    except (TypeError, ValueError):
        signature = None  # built-ins tell nothing of themselves; calling them will
    if signature is not None:
        try:
            signature.bind(**options)
        except TypeError as error:
            raise EngineStartError(f"{factory}: {error}; valid options: {', '.join(signature.parameters)}") from None
    return callable_(**options)


def in_words(factory: str, error: BaseException) -> str:
    """Why a start failed, for `StartFailed.reason`."""
    if isinstance(error, EngineStartError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return missing_package(factory, error)
    return f"{factory}: {type(error).__name__}: {error}"


def missing_package(factory: str, error: ModuleNotFoundError) -> str:
    """Names the package, the interpreter that lacks it and the command that would install it."""
    package = (error.name or "").partition(".")[0]
    if not package:
        return f"{factory}: {error}"
    return (
        f"{factory}: the package {package!r} is not installed in {sys.executable}; "
        f"install it with: {sys.executable} -m pip install {package.replace('_', '-')}"
    )


def _from_file(path: Path) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        raise EngineStartError(f"no such file: {path.absolute()}")
    return load_file(path)
