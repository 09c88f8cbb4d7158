"""Whether what a stage is given fits what it takes, and, where it does not, what would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreserve.errors import ConfigError
from foreserve.pipelines.plan import Edge
from foreserve.pipelines.shapes import fits, inner, is_later, is_stream, stream_of, value_of, words
from foreserve.pipelines.stage import Stage


def bound(stage: Stage, args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What each parameter is given, by name. Raises ConfigError where one is missing, unknown or given twice."""
    names = [takes.name for takes in stage.takes]
    shape = ", ".join(f"{takes.name}: {words(takes.kind)}" for takes in stage.takes)
    if len(args) > len(names):
        raise ConfigError(f"{where}: {len(args)} arguments were given; it takes ({shape})")
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names or name in given:
            why = "is given twice" if name in given else "is none of its parameters"
            raise ConfigError(f"{where}: {name!r} {why}; it takes ({shape})")
        given[name] = value
    for takes in stage.takes:
        if takes.required and takes.name not in given:
            raise ConfigError(f"{where}: {takes.name!r} is missing; it takes ({shape})")
    return given


def misfit(stage: Stage, flow: Edge, parameter: str, want: Any) -> str:
    """An error's words for a flow that does not fit a parameter, with the shape that would."""
    said = f"{stage.name}(…): `{parameter}` takes {words(want)}, and {flow.name!r} is {words(flow.kind)}{_level(flow)}"
    have, shape = flow.kind, None
    wanted = inner(want) if is_later(want) else want
    if is_stream(have) and fits(inner(have), wanted):
        one = len(stage.takes) == 1
        body = stage.name if one else f"lambda {one_of(flow.name)}: {stage.name}(…, {one_of(flow.name)})"
        shape = f"call it for each of them: `{flow.name}.map({body})`"
        if is_stream(wanted):
            shape += f", or take a level off: `{flow.name}.flatten()`"
    elif is_stream(wanted) and fits(stream_of(have), wanted):
        shape = f"it reads many, and there is one; take {words(have)} in place of {words(want)}"
    return f"{said}; {shape or f'{words(value_of(have))} would fit a parameter of that type'}"


def _level(flow: Edge) -> str:
    return f" for each of {flow.scope.source.name!r}" if flow.scope.source is not None else ""


def one_of(name: str) -> str:
    """How one of these is called."""
    return name[:-1] if name.endswith("s") and len(name) > 2 else f"one_{name}"
