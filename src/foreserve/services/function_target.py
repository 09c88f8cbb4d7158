"""The code that a function service names or decorates: what can be said of it before any of it runs."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from foreserve.arguments import Arguments
from foreserve.errors import ConfigError
from foreserve.registry import choices
from foreserve.settings import FunctionSettings


def target_of(code: Any) -> str:
    """How a worker finds decorated code. Raises ConfigError for what it could not import by name."""
    where = f"function {getattr(code, '__qualname__', code)!r}"
    if not inspect.isfunction(code) and not inspect.isclass(code):
        raise ConfigError(
            f"@function: {code!r} is not a function or a class; valid: def, async def, with or without yield, class"
        )
    if "<" in code.__qualname__:
        raise ConfigError(f"{where}: a worker process must find it by name; define it at the top of its file")
    return f"{Path(inspect.getfile(code)).resolve()}:{code.__qualname__}"


def called(code: Callable[..., Any]) -> Callable[..., Any]:
    """What runs at each call: the function itself, of a class its `__call__`."""
    return code.__call__ if inspect.isclass(code) else code


def arguments_of(code: Callable[..., Any], settings: FunctionSettings) -> Arguments:
    """The parameters of a call."""
    return Arguments(called(code), batched=settings.batch > 1, method=inspect.isclass(code))


def check_code(code: Callable[..., Any], settings: FunctionSettings, where: str) -> None:
    """Whether a worker can make it and call it as the settings say. Raises ConfigError."""
    if inspect.isclass(code):
        _check_class(code, settings, where)
    if settings.batch > 1:
        run = called(code)
        if inspect.isgeneratorfunction(run) or inspect.isasyncgenfunction(run):
            raise ConfigError(f"{where}: batch is {settings.batch}, and it yields items; a batch returns a list")
        if not arguments_of(code, settings).parameters:
            raise ConfigError(f"{where}: batch is {settings.batch}, and it takes no argument that could be a list")


def _check_class(code: type[Any], settings: FunctionSettings, where: str) -> None:
    if not any("__call__" in vars(each) for each in code.__mro__):
        raise ConfigError(f"{where}: the class has no `__call__`, which is what serves")
    for each in inspect.signature(code).parameters.values():
        needed = each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if needed and each.name != "weights":
            raise ConfigError(f"{where}: `__init__` needs {each.name!r}; a worker gives it `weights` alone")
        if needed and not settings.weights_by_name:
            raise ConfigError(f"{where}: `__init__` needs `weights`, and none are named; write @function(weights=…)")


def file_of(target: str) -> Path | None:
    """The file of `"file.py:name"`; `None` where a module is named."""
    place = target.rpartition(":")[0]
    return Path(place).expanduser().resolve() if place.endswith(".py") else None


def check_target(target: str, where: str) -> None:
    """Whether its file is there and names it. Runs none of it; a module is looked for by the interpreter that is to run
    it. Raises ConfigError."""
    file, name = file_of(target), target.rpartition(":")[2]
    if file is None:
        return
    if not file.is_file():
        raise ConfigError(f"{where}: target: there is no file {file}")
    try:
        names = set(_bound(ast.parse(file.read_bytes())))
    except SyntaxError as error:
        raise ConfigError(f"{where}: target: {file}, line {error.lineno or 1}: {error.msg}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: target: {file} cannot be read: {error}") from None
    if name.partition(".")[0] not in names and "*" not in names:
        raise ConfigError(f"{where}: target: {file} has no {name!r}{choices(name, sorted(names))}")


def words_left_out(target: str, settings: FunctionSettings) -> list[str]:
    """What `@function(…)` says above a target in a file that its service does not.

    A service reads its own settings alone: the file is not run to find out what it serves, so a `batch` in the
    decorator would be dropped without a word. One that the service sets too is not told, whichever value it has.
    """
    file, name = file_of(target), target.rpartition(":")[2]
    if file is None:
        return []
    plain = {each.name: each.default for each in msgspec.structs.fields(FunctionSettings)}
    words = _decorated_with(ast.parse(file.read_bytes()), name)
    return [word for word in words if word in plain and getattr(settings, word) == plain[word]]


def _decorated_with(tree: ast.Module, name: str) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            for each in node.decorator_list:
                if (
                    isinstance(each, ast.Call)
                    and getattr(each.func, "attr", getattr(each.func, "id", "")) == "function"
                ):
                    yield from (keyword.arg for keyword in each.keywords if keyword.arg is not None)


def _bound(tree: ast.Module) -> Iterator[str]:
    """The names that a module gives a meaning to, `*` where it may be any."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
