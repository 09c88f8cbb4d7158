"""A pipeline: a function of flows, read once when it is defined, and run for each request."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_origin

from foreserve.errors import BadRequest, ConfigError
from foreserve.pipelines.flow import Flow, result_of
from foreserve.pipelines.plan import Edge, Plan, Scope, sources_of, writing
from foreserve.pipelines.run import ONLY, Run
from foreserve.pipelines.shapes import hints_of, inner


class Pipeline:
    """Made by `@pipeline` of a function whose parameters are annotated: `def summary(text: str): return short(text)`.

    The function is called once, with flows; what it does with them is the pipeline. What it returns is what a client
    gets: one flow, or several by name in a dict. Called with flows it becomes part of another pipeline; with values it
    runs: `await summary("…")`, for which its stages must be plain code.
    """

    def __init__(self, code: Callable[..., Any], name: str | None = None) -> None:
        self.code = code
        self.name = name or code.__name__
        self.__name__ = self.name
        self.__doc__ = code.__doc__
        self.plan = traced(code, self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(arg, Flow) for arg in (*args, *kwargs.values())):
            return self.code(*args, **kwargs)
        return self.start(*args, **kwargs).result()

    def start(self, *args: Any, **kwargs: Any) -> Run:
        """Begin a run of it here. Raises BadRequest for inputs it does not take."""
        return Run(self.plan, self.inputs(*args, **kwargs)).start(listens=True)

    def inputs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The inputs by name. Raises BadRequest naming what is missing or unknown."""
        names = list(self.plan.inputs)
        if len(args) > len(names):
            raise BadRequest(f"pipeline {self.name!r} takes {len(names)} inputs: {', '.join(names)}")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for name in names:
            if name not in given:
                raise BadRequest(f"`{name}` is missing; pipeline {self.name!r} takes {', '.join(names)}", param=name)
        for name in given:
            if name not in names:
                raise BadRequest(f"pipeline {self.name!r} takes no `{name}`; valid: {', '.join(names)}", param=name)
        return given


def traced(code: Callable[..., Any], name: str) -> Plan:
    """The plan of a pipeline's function. Raises ConfigError for what does not fit, with what would."""
    where = f"pipeline {name!r}"
    if inspect.iscoroutinefunction(code) or inspect.isasyncgenfunction(code):
        raise ConfigError(
            f"{where} is an `async def`; it only says what flows where, so it is a plain `def`. What awaits is a stage"
        )
    hints = hints_of(code, where)
    plan = Plan(name)
    flows: dict[str, Flow[Any]] = {}
    for parameter in inspect.signature(code).parameters.values():
        kind = hints.get(parameter.name, Any)
        kind = inner(kind) if get_origin(kind) is Flow else Any if kind is Flow else kind
        flows[parameter.name] = Flow(plan.root, kind, parameter.name, made=False)
    if not flows:
        raise ConfigError(f"{where} takes nothing; give it a parameter, as in `def {name}(question: str)`")
    plan.inputs.update(flows)
    writing.append(plan)
    try:
        returned = code(**flows)
    finally:
        writing.pop()
    outputs = returned if isinstance(returned, dict) and returned else {ONLY: returned}
    for output, flow in outputs.items():
        result = result_of(flow, f"{where}: {output!r}")
        plan.seen(result, f"{where}: {output!r}")
        if output in plan.shown:
            raise ConfigError(f"{where}: {output!r} names an output, and something that is shown")
        plan.outputs[str(output)] = result
    plan.stack.clear()
    _measure(plan)
    return plan


def _measure(plan: Plan) -> None:
    """Find how deep each step lies, from the inputs on."""
    depth_of: dict[Edge, int] = {}

    def visit(scope: Scope) -> int:
        deepest = 0
        for step in scope.steps:
            sources = sources_of(step)
            depth = max((depth_of.get(edge, 0) for edge in sources), default=0) + 1
            plan.depths[step] = depth
            body = getattr(step, "body", None)
            if body is not None:
                depth_of[step.element] = depth  # type: ignore[attr-defined]
                depth = max(depth, visit(body))
            if step.out is not None:
                depth_of[step.out] = depth
            deepest = max(deepest, depth)
        return deepest

    visit(plan.root)


def pipeline(code: Callable[..., Any]) -> Pipeline:
    """`@pipeline` over a function of flows."""
    return Pipeline(code)
