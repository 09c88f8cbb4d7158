"""What a pipeline's function is written with: flows, and what can be done with them.

A flow stands for what will be on an edge: one value for each child of its scope. It has no value yet; a stage has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from foreserve.errors import ConfigError
from foreserve.pipelines.failing import Failed, checked
from foreserve.pipelines.fitting import bound, misfit, one_of
from foreserve.pipelines.giving import Argument, Mode, argument
from foreserve.pipelines.invoking import CallStep
from foreserve.pipelines.mapping import MapStep
from foreserve.pipelines.plan import Edge, Scope, is_log, writing
from foreserve.pipelines.shapes import depth, fits, inner, is_stream, stream_of, value_of, words
from foreserve.pipelines.shaping import FlattenStep, SplitStep, SpreadStep, WholeStep
from foreserve.pipelines.showing import ShowStep
from foreserve.pipelines.splitting import Splitter
from foreserve.pipelines.stage import Stage, stage_of
from foreserve.pipelines.text import Text

T = TypeVar("T")


class Flow(Edge, Generic[T]):
    """What is on one edge; `Flow[Stream[T]]` is many for each child of its scope, `Flow[Text]` a live text.

    Made by calling a stage with flows, and by the methods below. What does not fit is a ConfigError that shows what
    would.
    """

    __slots__ = ("pairs",)

    def __init__(
        self, scope: Scope, kind: Any, name: str, *, made: bool = True, ordered: bool = False, pairs: bool = False
    ) -> None:
        super().__init__(scope, kind, name, made=made, ordered=ordered)
        self.pairs = pairs
        """Whether its items are known by pairs of numbers, which have no next."""

    def map(self, body: Callable[..., Any], *, ordered: bool = False, failed: Failed = "fail") -> Flow[Any]:
        """`body` for each item: a stage, or a function of a flow that returns what becomes of it. Adds one level.

        Results come as they are made; with `ordered`, in the order of the items. `failed` says what becomes of an item
        whose body fails: `"fail"`, `"drop"`, or `default(value)`.
        """
        name = getattr(body, "__name__", type(body).__name__)
        where = f"{self.name}.map({name})"
        failed = checked(failed, where)
        if not is_stream(self.kind):
            if depth(value_of(self.kind)) == 0 and str(words(self.kind)).startswith("list"):
                return self.each().map(body, ordered=ordered, failed=failed)
            raise ConfigError(
                f"{where}: `map` is for many, and {self.name!r} is one {words(self.kind)}; "
                f"call it: `{name}({self.name})`"
            )
        plan = self._used(where)
        if ordered and self.pairs:
            raise ConfigError(f"{where}: a flattened stream has an order only with `flatten(ordered=True)`")
        scope = Scope(plan, name if name != "<lambda>" else self.name, plan.current, self)
        element: Flow[Any] = Flow(scope, inner(self.kind), one_of(self.name), made=False)
        plan.stack.append(scope)
        try:
            result = result_of(_called(body, element), where)
            plan.seen(result, where)
            # What a frame gives is made in it: it ends with the frame, and taking it back concerns nobody else.
            if result.scope is not scope or (result is element and is_log(element.kind)):
                result = result.gather()
        finally:
            plan.stack.pop()
        out: Flow[Any] = Flow(plan.current, stream_of(result.kind), result.name, ordered=ordered, pairs=self.pairs)
        step = MapStep(self, scope, element, result, out, failed)
        step.inline = _inline(step)
        plan.current.steps.append(step)
        return out

    def flatten(self, *, ordered: bool = False) -> Flow[Any]:
        """A stream of streams as one stream: one level less. With `ordered`, in the order of both."""
        where = f"{self.name}.flatten()"
        if depth(self.kind) < 2:
            raise ConfigError(
                f"{where}: `flatten` is for a stream of streams, and {self.name!r} is {words(self.kind)}; "
                + ("it is flat" if depth(self.kind) else "it is no stream")
            )
        plan = self._used(where)
        if ordered and self.pairs:
            raise ConfigError(f"{where}: the outer stream has an order only with `flatten(ordered=True)` there too")
        out: Flow[Any] = Flow(plan.current, inner(self.kind), self.name, pairs=not ordered)
        plan.current.steps.append(FlattenStep(self, out, ordered=ordered))
        return out

    def gather(self) -> Flow[Any]:
        """All of it as one value, once it is complete: streams as lists, in the order of their numbers."""
        plan = self._used(f"{self.name}.gather()")
        out: Flow[Any] = Flow(plan.current, value_of(self.kind), self.name)
        plan.current.steps.append(WholeStep("gather", (self,), _only, out))
        return out

    def split(self, splitter: Splitter) -> Flow[Any]:
        """A text as a stream of its pieces, while it is written: at `words`, `lines`, `sentences`, …"""
        where = f"{self.name}.split({splitter.name})"
        if self.kind not in (Text, str, Any):
            shape = f"; cut each of them: `{self.name}.map(lambda each: each.split({splitter.name}))`"
            raise ConfigError(
                f"{where}: `split` is for text, and {self.name!r} is {words(self.kind)}"
                + (shape if is_stream(self.kind) and inner(self.kind) in (Text, str) else "")
            )
        plan = self._used(where)
        out: Flow[Any] = Flow(plan.current, stream_of(Text), splitter.name)
        plan.current.steps.append(SplitStep(self, splitter, out))
        return out

    def each(self) -> Flow[Any]:
        """A list as a stream of what is in it."""
        plan = self._used(f"{self.name}.each()")
        out: Flow[Any] = Flow(plan.current, stream_of(inner(self.kind)), self.name)
        plan.current.steps.append(SpreadStep(self, out))
        return out

    def __getitem__(self, part: int | str) -> Flow[Any]:
        """One part of a tuple, list or dict."""
        if is_log(self.kind):
            raise ConfigError(f"{self.name}[{part!r}]: {self.name!r} is {words(self.kind)}; only one value has parts")
        plan = self._used(f"{self.name}[{part!r}]")
        args = getattr(self.kind, "__args__", ())
        kind = args[part] if isinstance(part, int) and _is_tuple(self.kind) and part < len(args) else Any
        out: Flow[Any] = Flow(plan.current, kind, f"{self.name}[{part!r}]")
        plan.current.steps.append(WholeStep("part", (self,), lambda values: values[0][part], out))
        return out

    def __iter__(self) -> Any:
        raise ConfigError(f"{self.name!r} has no items while the pipeline is written; use `{self.name}.map(…)`")

    def __bool__(self) -> bool:
        raise ConfigError(f"{self.name!r} has no value while the pipeline is written; decide in a stage")

    def __await__(self) -> Any:
        raise ConfigError(f"{self.name!r} is not awaited in a pipeline's function; call the next stage with it")

    def _used(self, what: str) -> Any:
        plan = self.scope.plan
        plan.seen(self, what)
        return plan


def join(*sides: Flow[Any], **named: Flow[Any]) -> Flow[Any]:
    """What belongs to the same child, together: a tuple, or with names a dict, once all sides are complete.

    A stage that takes several parameters joins them by itself, and begins before its streams are complete.
    """
    flows = (*sides, *named.values())
    if bool(sides) == bool(named) or not all(isinstance(side, Flow) for side in flows):
        raise ConfigError("join(...) takes flows, all by place, as in `join(claim, evidence)`, or all by name")
    plan = flows[0]._used("join(...)")
    for flow in flows[1:]:
        plan.seen(flow, "join(...)")
    kinds = tuple(value_of(flow.kind) for flow in flows)
    names = tuple(named)
    kind = dict[str, Any] if names else tuple[kinds]  # type: ignore[valid-type]
    out: Flow[Any] = Flow(plan.current, kind, "_".join(flow.name for flow in flows[:3]))
    make: Callable[[list[Any]], Any] = (lambda values: dict(zip(names, values, strict=True))) if names else tuple
    plan.current.steps.append(WholeStep("join", flows, make, out))
    return out


def show(name: str, flow: Flow[T]) -> Flow[T]:
    """Tell the client of what is on an edge inside of a `map` too, as events called `name`. Returns the flow itself."""
    plan = flow._used(f"show({name!r})")
    if name in plan.outputs or name in plan.shown:
        raise ConfigError(f"show({name!r}): another flow is shown by this name")
    plan.shown[name] = flow
    plan.current.steps.append(ShowStep(name, flow))
    return flow


def call(stage: Stage, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Flow[Any]:
    """A step that calls `stage`. Raises ConfigError where what it is given does not fit."""
    where = f"{stage.name}(…)"
    given = bound(stage, args, kwargs, where)
    flows = [value for value in given.values() if isinstance(value, Flow)]
    plan = flows[0].scope.plan if flows else writing[-1]
    arguments = []
    for takes in stage.takes:
        if takes.name not in given:
            continue
        value = given[takes.name]
        if not isinstance(value, Flow):
            arguments.append(Argument(takes.name, None, value))
            continue
        plan.seen(value, where)
        if not fits(value.kind, takes.kind):
            raise ConfigError(misfit(stage, value, takes.name, takes.kind))
        arguments.append(argument(takes.name, value, takes.kind))
    if stage.failed == "drop" and plan.current.parent is None:
        raise ConfigError(f'{where}: `failed="drop"` drops the child of a map that encloses it, and none does here')
    out: Flow[Any] = Flow(plan.current, stage.gives, stage.name)
    plan.current.steps.append(CallStep(stage, tuple(arguments), out))
    return out


def _called(body: Callable[..., Any], element: Flow[Any]) -> Any:
    if inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body):
        return stage_of(body)(element)  # a plain asynchronous function is a stage
    return body(element)


def result_of(result: Any, where: str) -> Flow[Any]:
    """What a body or a pipeline returned as one flow; several are joined."""
    if isinstance(result, Flow):
        return result
    if isinstance(result, tuple) and result and all(isinstance(each, Flow) for each in result):
        return join(*result)
    if isinstance(result, dict) and result and all(isinstance(each, Flow) for each in result.values()):
        return join(**result)
    raise ConfigError(
        f"{where}: the body returned {type(result).__name__}; it must return what a stage or an operation gave it, a "
        "tuple of such, or a dict. Code that looks at values belongs into a stage: `@stage` over an `async def`"
    )


def _inline(step: MapStep) -> Callable[[Any], Any] | None:
    """The body as a plain call, where it is a single inline one of the element and constants."""
    if len(step.body.steps) != 1 or not isinstance(only := step.body.steps[0], CallStep):
        return None
    if only.inline is None or only.out is not step.result or is_log(only.out.kind) or only.stage.failed != "fail":
        return None
    places = [at for at, each in enumerate(only.arguments) if each.edge is not None]
    argument = only.arguments[places[0]]
    if len(places) != 1 or argument.edge is not step.element or argument.mode is not Mode.VALUE:
        return None
    inline = only.inline
    if len(only.arguments) == 1:
        return inline
    constants = [each.constant for each in only.arguments]
    place = places[0]

    def call(value: Any) -> Any:
        given = constants.copy()
        given[place] = value
        return inline(*given)

    return call


def _only(values: list[Any]) -> Any:
    return values[0]


def _is_tuple(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is tuple
