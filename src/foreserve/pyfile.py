"""A Python file as a module: app files, targets of function services and engines are all loaded by the same rule."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_file(path: Path) -> ModuleType:
    """Run the file, which must be there, as a module of a name of its own; raises whatever it raises.

    It runs anew at each call, and its newest module is the one in `sys.modules`. It can import what lies beside it: its
    folder joins `sys.path` at the end, so that a neighbour shadows no module of the interpreter, and the same file
    finds the same modules in the gateway and in a worker.
    """
    full = path.expanduser().resolve()
    name = f"foreserve_file_{full.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, full)
    if spec is None or spec.loader is None:
        raise ImportError(f"{full} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(full.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    before = sys.modules.get(name)
    sys.modules[name] = module  # pickling and dataclasses look a class's module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module
