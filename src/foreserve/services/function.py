"""The function kind: a plain Python function, generator or async function behind the same dispatcher as a model.

    @foreserve.function(max_running=4)
    def rank(query: str, documents: list[str]) -> list[float]: ...

    app = foreserve.App(rank=rank)

Its worker imports the file again, so what the file does when imported must be cheap and safe to do twice.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, overload

from foreserve.core import Chunk, EngineInfo, EngineSpec, Outcome, Price, Request, Work
from foreserve.errors import BadRequest, ConfigError
from foreserve.parsing import parse
from foreserve.ports import Decoded
from foreserve.registry import choices, entry
from foreserve.settings import FunctionSettings

EVENTS_BOUND = 4096
"""Items of a generator that a reader may be behind."""


class Function:
    """Serves `target`, `"module:name"` or `"file.py:name"`. The other words are those of `FunctionSettings`.

    Made by the decorator `function` it stays callable as the function it wraps.
    """

    name = "function"
    policy = "fcfs"

    def __init__(self, target: str | None = None, /, **words: Any) -> None:
        if target is not None:
            words["target"] = target
        self._setup(parse(words, FunctionSettings, "Function(...)"), "Function(...)", None)

    @classmethod
    def from_settings(cls, settings: FunctionSettings, where: str) -> Function:
        """As an app file in YAML makes it; `where` is named in errors."""
        made = cls.__new__(cls)
        made._setup(settings, where, None)
        return made

    @classmethod
    def of(cls, code: Callable[..., Any], words: dict[str, Any]) -> Function:
        """What the decorator makes. Raises ConfigError for code that a worker could not import by name."""
        where = f"function {getattr(code, '__qualname__', code)!r}"
        if not inspect.isfunction(code):
            raise ConfigError(f"@function: {code!r} is not a function; valid: def, async def, with or without yield")
        if "<" in code.__qualname__:
            raise ConfigError(f"{where}: a worker process must find it by name; define it at the top of its file")
        words = {"target": f"{Path(inspect.getfile(code)).resolve()}:{code.__qualname__}", **words}
        made = cls.__new__(cls)
        made._setup(parse(words, FunctionSettings, where), where, code)
        functools.update_wrapper(made, code)
        return made

    def _setup(self, settings: FunctionSettings, where: str, code: Callable[..., Any] | None) -> None:
        self.settings = settings
        self.idempotent = settings.idempotent
        self._where = where
        self.served_code = code
        """The function itself, where it was decorated; a worker that finds this object by name runs that."""
        self._signature = inspect.signature(code) if code is not None else None
        self._streams = code is not None and (inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, here."""
        if self.served_code is None:
            raise ConfigError(f"{self.settings.target} is named, not decorated: import it to call it")
        return self.served_code(*args, **kwargs)

    # --- the kind

    def check(self) -> None:
        """Whether the function's file is there and names it. Runs none of it. Raises ConfigError."""
        place, _, name = self.settings.target.rpartition(":")
        if not place.endswith(".py"):
            return  # a module is looked for by the interpreter that is to run it
        file = Path(place)
        if not file.is_file():
            raise ConfigError(f"{self._where}: target: there is no file {file}")
        try:
            names = set(_bound(ast.parse(file.read_text())))
        except SyntaxError as error:
            raise ConfigError(f"{self._where}: target: {file}, line {error.lineno}: {error.msg}") from None
        if name.partition(".")[0] not in names and "*" not in names:
            raise ConfigError(f"{self._where}: target: {file} has no {name!r}{choices(name, sorted(names))}")

    def prepare(self, progress: Callable[[float, str], None] | None = None) -> None:
        """Nothing is made beforehand; that the file is there is seen now rather than in a worker."""
        place = self.settings.target.rpartition(":")[0]
        if place.endswith(".py") and not Path(place).is_file():
            raise ConfigError(f"function {self.settings.target!r}: there is no file {place}")

    def engines(self) -> list[EngineSpec]:
        """How the workers make their engines, all alike."""
        settings = self.settings
        spec = EngineSpec(
            factory=entry("engine", "python", f"{self._where}: engine").value,
            options={"target": settings.target, "max_running": settings.max_running},
            python=settings.python,
            env=settings.env,
            start_limit_s=settings.start_limit_s,
            liveness_s=settings.liveness_s,
        )
        return [spec] * settings.bounds[1]

    def price(self, request: Request) -> Price:
        return Price(cost={"slots": 1.0})

    def settled(self, outcome: Outcome) -> None:
        """Nothing is learned of functions yet."""

    def ready(self, info: EngineInfo) -> None:
        if self.served_code is None:
            self._streams = bool(info.facts.get("streams"))

    def decoder(self, work: Work) -> Items:
        return Items()

    def events_bound(self, payload: dict[str, Any]) -> int:
        return EVENTS_BOUND

    # --- what the gateway asks

    @property
    def streams(self) -> bool:
        """Whether it yields several items rather than returning one result. Known once a replica has been ready."""
        return self._streams

    def call(self, args: dict[str, Any]) -> dict[str, Any]:
        """The payload of a call with these keyword arguments. Raises BadRequest where they do not fit."""
        if self._signature is not None:
            try:
                self._signature.bind(**args)
            except TypeError as error:
                raise BadRequest(f"wrong arguments: {error}; the function takes {self._signature}") from None
        return {"args": args}


def _bound(tree: ast.Module) -> Iterator[str]:
    """The names that a module gives a meaning to, `*` where it may be any."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]


class Items:
    """Every chunk's data is an item."""

    def __init__(self) -> None:
        self._items = 0

    def feed(self, chunk: Chunk) -> Decoded:
        # The chunk that ends a call carries no item, unless an item that is None could not be told from it.
        if chunk.finish is not None and chunk.data is None:
            return Decoded()
        self._items += 1
        return Decoded(events=(chunk.data,))

    def usage(self) -> dict[str, float]:
        return {"items": float(self._items)}


@overload
def function(code: Callable[..., Any], /) -> Function: ...
@overload
def function(**words: Any) -> Callable[[Callable[..., Any]], Function]: ...
def function(code: Callable[..., Any] | None = None, /, **words: Any) -> Any:
    """Serve a function: `@function`, or `@function(replicas=2)` with words of `FunctionSettings`."""
    if code is not None:
        return Function.of(code, words)
    return lambda decorated: Function.of(decorated, words)
