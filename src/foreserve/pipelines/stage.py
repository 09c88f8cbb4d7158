"""A stage: a typed function, called in the graph with flows and at run time with what they bring."""

from __future__ import annotations

import collections.abc as abc
import dis
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, overload

from foreserve.errors import ConfigError
from foreserve.pipelines.failing import Failed, checked
from foreserve.pipelines.plan import Edge, writing
from foreserve.pipelines.shapes import hints_of, inner, stream_of
from foreserve.pipelines.text import Text

_ITERATORS = (abc.AsyncIterator, abc.AsyncGenerator, abc.AsyncIterable, abc.Iterator, abc.Generator, abc.Iterable)
_SUSPENDING = {"GET_AWAITABLE", "GET_AITER", "GET_ANEXT", "SEND", "BEFORE_ASYNC_WITH"}

Runs = Literal["inline", "task", "items"]
"""At once, in a plain call; in a task of its own; as a generator, in a task of its own."""

Again = Literal["retract", "continue"]


@dataclass(frozen=True)
class Takes:
    """One parameter."""

    name: str
    kind: Any
    required: bool


class Stage:
    """What a pipeline does with what comes along its edges: `code`, `takes` by name, `gives`.

    Called with flows, in a pipeline's function, it is a step there. Called with anything else it runs, so that it can
    be tried by itself. Stages that serve a request elsewhere have `in_context`: their code gets the invocation first.
    """

    in_context = False

    def __init__(
        self,
        code: Callable[..., Any],
        name: str,
        takes: tuple[Takes, ...],
        gives: Any,
        runs: Runs,
        *,
        failed: Failed = "fail",
        concurrency: int | None = None,
        again: Again = "retract",
        attempts: int = 2,
    ) -> None:
        self.code = code
        self.name = name
        self.takes = takes
        self.gives = gives
        self.runs = runs
        self.failed = failed
        self.concurrency = concurrency
        self.again = again
        self.attempts = attempts
        self.__name__ = name
        self.__doc__ = code.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if writing or any(isinstance(arg, Edge) for arg in (*args, *kwargs.values())):
            from foreserve.pipelines.flow import call

            return call(self, args, kwargs)
        return self.code(*args, **kwargs)

    def call_now(self) -> Callable[..., Any]:
        """Its code as a plain function, where it runs inline."""
        return _at_once(self.code) if inspect.iscoroutinefunction(self.code) else self.code


def stage_of(code: Callable[..., Any], **words: Any) -> Stage:
    """A stage of a function, a coroutine function or a generator, by its annotations. Raises ConfigError."""
    name = words.pop("name", None) or getattr(code, "__name__", type(code).__name__)
    where = f"stage {name!r}"
    if isinstance(code, Stage):
        raise ConfigError(f"{where} is a stage already")
    if not callable(code) or inspect.isclass(code):
        raise ConfigError(f"{where} is no function; write `@stage` over an `async def`")
    hints = hints_of(code, where)
    takes = []
    for parameter in inspect.signature(code).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(f"{where}: `*{parameter.name}` has no type to route by; name each parameter")
        kind = hints.get(parameter.name, Any)
        takes.append(Takes(parameter.name, kind, parameter.default is parameter.empty))
    yields = inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code)
    gives = hints.get("return", Any)
    if yields:
        gives = _given_by_each(gives, where)
    elif get_origin(gives) in _ITERATORS and get_origin(gives) is not abc.Iterable:
        raise ConfigError(f"{where} is said to return {gives}, and yields nothing; make it a generator with `yield`")
    words["failed"] = checked(words.get("failed", "fail"), where)
    concurrency = words.get("concurrency")
    if concurrency is not None and concurrency < 1:
        raise ConfigError(f"{where}: `concurrency` is {concurrency}; it must be at least 1")
    if words.get("again", "retract") not in get_args(Again):
        raise ConfigError(f'{where}: `again` is {words["again"]!r}; valid: "retract", "continue"')
    runs: Runs = "items" if yields else "task" if _may_wait(code) or concurrency is not None else "inline"
    return Stage(code, name, tuple(takes), gives, runs, **words)


def _given_by_each(gives: Any, where: str) -> Any:
    if gives is Any:
        return stream_of(Any)
    if gives is Text:
        return Text
    if get_origin(gives) in _ITERATORS:
        return stream_of(inner(gives))
    raise ConfigError(
        f"{where} yields, and is said to return {gives}; valid: `AsyncIterator[T]` for a stream of T, or `Text` for "
        "one text that is handed on while it is made"
    )


def _may_wait(code: Callable[..., Any]) -> bool:
    """Whether a coroutine function can suspend at all: one without `await` is no more than a plain call."""
    if not inspect.iscoroutinefunction(code):
        return False
    function = inspect.unwrap(code)
    if not inspect.isfunction(function) or function is not code:
        return True
    return any(
        each.opname in _SUSPENDING for each in dis.get_instructions(function) if each.opname != "RETURN_GENERATOR"
    )


def _at_once(code: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        running = code(*args)
        try:
            running.send(None)
        except StopIteration as result:
            return result.value
        running.close()
        raise RuntimeError(f"{code.__name__} has no `await` and still waits for something")

    return call


@overload
def stage(code: Callable[..., Any], /) -> Stage: ...
@overload
def stage(**words: Any) -> Callable[[Callable[..., Any]], Stage]: ...
def stage(code: Callable[..., Any] | None = None, /, **words: Any) -> Any:
    """`@stage`, or `@stage(failed="drop", concurrency=4)`, over a typed function, a coroutine or a generator.

    `failed` says what becomes of a call that fails (`"fail"`, `"drop"`, `default(value)`); `concurrency` bounds how
    many run at once, over all requests. A call whose replica is lost is made again, `attempts` times in all: under
    `again="retract"` all that it has given is taken back first, with everything that was made of it; a stage that
    gives the same items each time may say `again="continue"`: those that came already are left out then.
    """
    unknown = words.keys() - {"name", "failed", "concurrency", "again", "attempts"}
    if unknown:
        raise ConfigError(
            f"stage(...): unknown word {sorted(unknown)[0]!r}; valid: again, attempts, concurrency, failed, name"
        )
    if code is not None:
        return stage_of(code)
    return lambda decorated: stage_of(decorated, **words)
