"""The user's code, ready to be called: a function as it is, of a class the one object that a worker makes of it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from foreserve import clock
from foreserve.arguments import Arguments, is_fed
from foreserve.calling import Call
from foreserve.core import Finish
from foreserve.engines.python_fed import Fed
from foreserve.engines.python_values import Raised
from foreserve.errors import BadRequest, EngineStartError
from foreserve.runtime.factory import load_factory

log = logging.getLogger(__name__)


class Code:
    """`call` runs it. `streams`: it yields items; `is_async`: it runs on the loop."""

    def __init__(self, call: Callable[..., Any], *, batched: bool) -> None:
        # Of an object with `__call__` it is that which tells whether it is a generator, or async.
        plain = call if inspect.isroutine(call) else getattr(call, "__call__", call)  # noqa: B004
        self.call = call
        self.arguments = Arguments(call, batched=batched)
        self.streams = inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain)
        self.is_async = inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain)
        self.fed = frozenset(name for name, hint in self.arguments.hints.items() if is_fed(hint))
        """Parameters that take items as they come."""

    def facts(self) -> dict[str, Any]:
        """What the gateway is told of it; see `EngineInfo.facts`."""
        parameters = self.arguments.parameters
        return {
            "streams": self.streams,
            "parameters": [each.name for each in parameters],
            "takes": msgspec.to_builtins(parameters),
        }

    def values(self, payload: Any) -> tuple[Call, dict[str, Any]] | Finish:
        """A call's keyword arguments, or the finish that rejects it."""
        try:
            call = payload if isinstance(payload, Call) else msgspec.convert(payload, Call)
            values = self.arguments.values(call)
            return call, {name: Fed.of(value) if name in self.fed else value for name, value in values.items()}
        except msgspec.ValidationError as error:
            return Finish(reason="rejected", error=f"this is no call of a function: {error}")
        except BadRequest as error:
            return Finish(reason="rejected", error=error.message)


async def load_code(
    target: str | Callable[..., Any], weights: str | Sequence[str] | None = None, *, batched: bool = False
) -> Code:
    """Load what `target` names; a class is made, off the loop, with its weights if its `__init__` asks for them.

    `weights` is the name of the only ones, or a list of names. Raises EngineStartError in words.
    """
    found = load_factory(target) if isinstance(target, str) else target
    # What `@foreserve.function` made stands for the code it wraps: as itself it looks like a plain callable.
    found = getattr(found, "served_code", None) or found
    if inspect.isclass(found):
        given = {"weights": _weights(weights)} if weights and "weights" in inspect.signature(found).parameters else {}
        kind: type[Any] = found
        made = await clock.offload(lambda: _made(kind, given))
        if isinstance(made, Raised):
            if isinstance(made.error, EngineStartError):
                raise made.error
            log.error("%s could not be made", found.__qualname__, exc_info=made.error)
            raise EngineStartError(f"{found.__qualname__}(…) raised {made.words}") from made.error
        found = made
    code = Code(found, batched=batched)
    if batched and code.streams:
        raise EngineStartError(f"{target} is a generator, and `batch` is above 1; a batch returns a list")
    return code


def _made(found: type[Any], given: dict[str, Any]) -> Any:
    try:
        return found(**given)
    except BaseException as error:
        return Raised(error)


def _weights(names: str | Sequence[str]) -> Any:
    from foreserve.engines.python_weights import weights

    return weights(names) if isinstance(names, str) else {name: weights(name) for name in names}
