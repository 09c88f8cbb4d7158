"""Functions that are fed while they run hold their slots meanwhile: none may wait for what it makes itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreserve.errors import ConfigError
from foreserve.pipelines.giving import Mode
from foreserve.pipelines.invoking import CallStep
from foreserve.pipelines.plan import Edge, Plan, Scope, sources_of
from foreserve.services.pipeline_calls import service_name
from foreserve.services.pipeline_stages import CallFunction


def check_feeding(plan: Plan, kinds: Mapping[str, Any], pipeline: str) -> None:
    """Raises ConfigError for a function that is fed a stream in which it has a part: it might wait for itself."""
    makers: dict[Edge, set[str]] = {}

    def visit(scope: Scope) -> None:
        for step in scope.steps:
            sources = sources_of(step)
            before = set().union(*(makers.get(edge, set()) for edge in sources))
            own: set[str] = set()
            if isinstance(step, CallStep) and isinstance(step.stage, CallFunction):
                name = service_name(step.stage.ref, kinds, f"pipeline {pipeline!r}")
                fed = any(each.mode is Mode.LIVE for each in step.arguments)
                if fed and name in before:
                    raise ConfigError(
                        f"pipeline {pipeline!r}: {name!r} is fed a stream that it has made itself, and might wait for "
                        f"itself; gather it first: `{step.arguments[0].edge.name}.gather()`"  # type: ignore[union-attr]
                    )
                own = {name}
            if (body := getattr(step, "body", None)) is not None:
                makers[step.element] = before  # type: ignore[attr-defined]
                visit(body)
                own = makers.get(step.result, set())  # type: ignore[attr-defined]
            if step.out is not None:
                makers[step.out] = before | own

    visit(plan.root)
