"""The function kind: a user's own Python code behind the same dispatcher as a model.

    @foreserve.function(max_running=4)
    def rank(query: str, documents: list[str]) -> list[float]: ...

    @foreserve.function(weights="ranker.safetensors", batch=16, route="/rank")
    class Rank:
        def __init__(self, weights: foreserve.Weights) -> None: ...
        def __call__(self, query: list[str]) -> list[float]: ...

    app = foreserve.App(rank=rank, ranked=Rank)

Its worker imports the file again, so what the file does when imported must be cheap and safe to do twice.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import msgspec

from foreserve.arguments import Arguments, Parameter
from foreserve.calling import Call, Output
from foreserve.core import Chunk, EngineInfo, EngineSpec, Outcome, Price, Request, Work
from foreserve.errors import ConfigError
from foreserve.parsing import parse
from foreserve.pipelines.plan import Edge, writing
from foreserve.ports import Decoded
from foreserve.registry import entry
from foreserve.services.function_price import CallSeconds
from foreserve.services.function_target import (
    arguments_of,
    called,
    check_code,
    check_target,
    file_of,
    target_of,
    words_left_out,
)
from foreserve.services.function_weights import check_weights, weights_of
from foreserve.services.imports import imports_of
from foreserve.services.inference import ANY, ModelTensor
from foreserve.settings import FunctionSettings
from foreserve.tensors import Tensor

EVENTS_BOUND = 4096
"""Items of a generator that a reader may be behind."""

MOST_BACKOFF_S = 1.0
"""Between restarts of a worker. One call that brings its worker down shall not close the service to the others."""

MIB = 2**20

_DATATYPES = {"int": "INT64", "float": "FP64", "bool": "BOOL", "str": "BYTES", "bytes": "BYTES"}


class Function:
    """Serves `target`, `"module:name"` or `"file.py:name"`. The other words are those of `FunctionSettings`.

    Made by the decorator `function` it stays callable as the function or class it wraps.
    """

    name = "function"
    platform = "foreserve_function"

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
        """What the decorator makes. Raises ConfigError for code that a worker could not import, make or call."""
        words = {"target": target_of(code), **words}
        where = f"function {code.__qualname__!r}"
        settings = parse(words, FunctionSettings, where)
        check_code(code, settings, where)
        made = cls.__new__(cls)
        made._setup(settings, where, code)
        # What a class has of its own is its objects', not this object's.
        functools.update_wrapper(made, code, updated=() if inspect.isclass(code) else functools.WRAPPER_UPDATES)
        return made

    def _setup(self, settings: FunctionSettings, where: str, code: Callable[..., Any] | None) -> None:
        if settings.batch > 1 and settings.policy in ("auto", "deferred"):
            options = {"wait_s": settings.batch_wait_s, **settings.policy_options}
            settings = msgspec.structs.replace(settings, policy_options=options)
        self.settings = settings
        self.idempotent = settings.idempotent
        self._where = where
        self.served_code = code
        """The code itself, where it was decorated; a worker that finds this object by name runs that."""
        self._arguments: Arguments | None = None if code is None else arguments_of(code, settings)
        self._takes: tuple[Parameter, ...] | None = None if self._arguments is None else self._arguments.parameters
        run = None if code is None else called(code)
        self._streams = inspect.isgeneratorfunction(run) or inspect.isasyncgenfunction(run)
        self._seconds = CallSeconds()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, here; a class makes an object. In a pipeline's function it is a step there."""
        if writing or any(isinstance(arg, Edge) for arg in (*args, *kwargs.values())):
            from foreserve.services.pipeline_stages import function_step

            return function_step(self, args, kwargs)
        if self.served_code is None:
            raise ConfigError(f"{self.settings.target} is named, not decorated: import it to call it")
        return self.served_code(*args, **kwargs)

    # --- the kind

    @property
    def policy(self) -> str:
        """Batches close by deadline; single calls run as they come."""
        return "deferred" if self.settings.batch > 1 else "fcfs"

    def check(self) -> None:
        """Whether its file and its weights are there, and what they must be. Runs none of it. Raises ConfigError."""
        check_target(self.settings.target, self._where)
        if self.served_code is None and (words := words_left_out(self.settings.target, self.settings)):
            raise ConfigError(
                f"{self._where}: {self.settings.target} is decorated with @function({', '.join(words)}), which is read "
                f"only where the decorated object itself is served; say {', '.join(words)} here too"
            )
        check_weights(weights_of(self.settings), self._where)

    def prepare(self, progress: Callable[[float, str], None] | None = None) -> None:
        """Nothing is made beforehand; what is not there is seen now rather than in a worker."""
        self.check()

    def engines(self) -> list[EngineSpec]:
        """How the workers make their engines, all alike."""
        settings = self.settings
        batched = settings.batch > 1
        options: dict[str, Any] = {"target": settings.target}
        options |= {"batch": settings.batch} if batched else {"max_running": settings.max_running}
        if settings.weights is not None:
            options["weights"] = "weights" if isinstance(settings.weights, str) else [*settings.weights]
        if settings.timeout_s is not None:
            options["timeout_s"] = settings.timeout_s
        factory = entry("engine", "python_batched" if batched else "python", f"{self._where}: engine").value
        spec = EngineSpec(
            factory=factory,
            options=options,
            python=settings.python,
            env=settings.env,
            start_limit_s=settings.start_limit_s,
            liveness_s=settings.liveness_s,
            most_backoff_s=MOST_BACKOFF_S,
            weights=weights_of(settings),
            imports=(factory.partition(":")[0], *self._imports()),
            learn=settings.imports is None,
            own="" if file_of(settings.target) is not None else settings.target.partition(":")[0].partition(".")[0],
            memory_bytes=None if settings.memory_mb is None else int(settings.memory_mb * MIB),
        )
        return [spec] * settings.bounds[1]

    def _imports(self) -> tuple[str, ...]:
        """What its processes have imported before they are wanted: what was named, or what its file imports."""
        file = file_of(self.settings.target)
        if self.settings.imports is None and file is not None:
            return imports_of(file, self.settings.python)
        return tuple(self.settings.imports or ())

    def price(self, request: Request) -> Price:
        return Price(cost={"slots": 1.0}, forecast=self._seconds.forecast())

    def settled(self, outcome: Outcome) -> None:
        """Learn how long calls take, by how many run together."""
        self._seconds.settled(outcome)

    def ready(self, info: EngineInfo) -> None:
        if self.served_code is None:
            self._streams = bool(info.facts.get("streams"))
            self._takes = msgspec.convert(info.facts.get("takes", ()), tuple[Parameter, ...])

    def decoder(self, work: Work) -> Items:
        return Items()

    def events_bound(self, payload: Call) -> int:
        return EVENTS_BOUND

    # --- what the gateway asks

    @property
    def streams(self) -> bool:
        """Whether it yields several items rather than returning one result. Known once `takes` is."""
        return self._streams

    @property
    def takes(self) -> tuple[Parameter, ...] | None:
        """Its parameters: of code that is named, known once a replica has been ready."""
        return self._takes

    @property
    def hints(self) -> Mapping[str, Any]:
        """The annotations of its parameters; of code that is named they are not known here."""
        return {} if self._arguments is None else self._arguments.hints

    def call(self, args: dict[str, Any]) -> Call:
        """The payload of a call with these keyword arguments. Raises BadRequest where they do not fit."""
        return self.checked(Call(args=args))

    def checked(self, call: Call) -> Call:
        """`call`, if it fits. What is not known here of named code is checked by its worker. Raises BadRequest."""
        if self._arguments is not None:
            self._arguments.check(call)
        return call

    # --- as a model of the Open Inference Protocol

    def model_inputs(self) -> list[ModelTensor]:
        """By its annotations."""
        return [_model_tensor(each) for each in self._takes or ()]

    def model_outputs(self) -> list[ModelTensor]:
        """What it returns is known when it does."""
        return []

    def infer(self, tensors: Mapping[str, Tensor]) -> Call:
        """A call whose arguments are these, by name."""
        return self.checked(Call(tensors=dict(tensors), as_tensors=True))

    def inferred(self, events: Sequence[Any]) -> list[Output]:
        """The outputs that its engine made of the result."""
        return msgspec.convert(events[0], list[Output]) if events else []


def _model_tensor(parameter: Parameter) -> ModelTensor:
    words = parameter.words.replace("list[", "").replace("]", "")
    return ModelTensor(name=parameter.name, datatype=_DATATYPES.get(words, ANY), shape=(-1,))


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
    """Serve a function or a class: `@function`, or `@function(replicas=2)` with words of `FunctionSettings`.

    A class is made once in each worker, with its `weights` if its `__init__` takes them, and its `__call__` serves.
    """
    if code is not None:
        return Function.of(code, words)
    return lambda decorated: Function.of(decorated, words)
