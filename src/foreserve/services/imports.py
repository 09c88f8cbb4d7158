"""What a user's file imports, read without running it: so that processes may have done it before they are wanted."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

MOST_IMPORTS = 64
MOST_FILES = 32
MOST_BYTES = 1 << 20
"""Bounds on the names that are returned, the files that are read, and the size of each."""

_OURS = "foreserve"


def imports_of(file: Path, python: str | None = None) -> tuple[str, ...]:
    """Names of installed modules that `file` imports when it is imported, in order, with those of files beside it.

    Only code that surely runs counts: not what is in functions, nor what is for type checkers. Modules of the standard
    library cost little and are left out. Where `python` is `None`, the worker's interpreter is ours, and what is not
    found here is left out; else all names are returned, and that interpreter finds out. A file that cannot be read
    or parsed has none: its worker will say why.
    """
    found: dict[str, None] = {}
    files = {file.expanduser().resolve(): None}
    for each in _growing(files):
        for name in _imported(each):
            top = name.partition(".")[0]
            if (beside := _beside(file, top)) is not None:
                files.setdefault(beside)
            elif top not in sys.stdlib_module_names and top != _OURS and (python is not None or _installed(top)):
                found.setdefault(name)
    return tuple(found)[:MOST_IMPORTS]


def _growing(files: dict[Path, None]) -> Iterator[Path]:
    """Each file once, also those that are added meanwhile; at most MOST_FILES."""
    for at in range(MOST_FILES):
        if at >= len(files):
            return
        yield list(files)[at]


def _imported(file: Path) -> Iterator[str]:
    try:
        if file.stat().st_size > MOST_BYTES:
            return
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    yield from _of(tree.body)


def _of(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield alias.name
            case ast.ImportFrom(level=0, module=str(module)):
                yield module
            case ast.Try() | ast.TryStar() | ast.With() | ast.ClassDef():
                yield from _of(node.body)
            case ast.If() if not _for_types(node.test):
                yield from _of(node.body)


def _for_types(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


def _beside(file: Path, top: str) -> Path | None:
    """The user's own code of that name: it must run in the worker alone, so only what it imports matters here."""
    folder = file.expanduser().resolve().parent
    for path in (folder / f"{top}.py", folder / top / "__init__.py"):
        if path.is_file():
            return path
    return None


def _installed(top: str) -> bool:
    installed = [entry for entry in sys.path if Path(entry or ".").resolve() != Path.cwd()]
    try:
        return PathFinder.find_spec(top, installed) is not None
    except (ImportError, ValueError):
        return False
