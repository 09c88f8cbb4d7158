"""Finding the Python callable that a function service names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from foreserve.errors import EngineStartError
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
    """Run a file as a module, with its folder importable, as for a script."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise EngineStartError(f"there is no file {path}")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = f"foreserve_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise EngineStartError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise EngineStartError(f"running {path} failed: {type(error).__name__}: {error}") from error
    return module
