"""Finding the Python callable that a function service names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from foreserve.errors import EngineStartError
from foreserve.pyfile import load_file
from foreserve.registry import choices


def load_target(target: str) -> Callable[..., Any]:
    """The callable that `"module:name"` or `"file.py:name"` names. Raises EngineStartError in words."""
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise EngineStartError(f'the target {target!r} names no callable; valid: "module:name" or "file.py:name"')
    module = _from_file(Path(place)) if place.endswith(".py") else _import(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [each for each in vars(found) if not each.startswith("_") and callable(getattr(found, each))]
            raise EngineStartError(f"{place} has no {part!r}{choices(part, public)}")
        found = getattr(found, part)
    # What `@foreserve.function` made stands for the code it wraps: as itself it looks like a plain callable.
    found = getattr(found, "served_code", None) or found
    if not callable(found):
        raise EngineStartError(f"{target} is {type(found).__name__}, which cannot be called")
    return found  # type: ignore[no-any-return]


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise EngineStartError(f"cannot import {name}: {type(error).__name__}: {error}") from error


def _from_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise EngineStartError(f"there is no file {path}")
    try:
        return load_file(path)
    except Exception as error:
        raise EngineStartError(f"running {path} failed: {type(error).__name__}: {error}") from error
