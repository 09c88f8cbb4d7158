"""What a pipeline is made of once its function has been traced: scopes, the edges in them, and the steps between.

A scope is the body of one `map`, the outermost that of the request. Each scope is one level of ancestry: what is in it
exists once for each child. Levels and routing keys are read off the scopes, so nobody writes them.
"""

from __future__ import annotations

from typing import Any, Protocol

from foreserve.errors import ConfigError
from foreserve.pipelines.shapes import is_stream, stream_of, words
from foreserve.pipelines.text import Text


class Step(Protocol):
    """One operation of a scope, opened in each frame of it."""

    name: str

    @property
    def out(self) -> Edge | None: ...
    def open(self, frame: Any) -> None:
        """Begin in a frame, whose logs are there already. Calls `frame.step_done()` once, when all of it is over."""
        ...


class Scope:
    """One level: `steps` in the order in which they were written, `size` cells for what is on its edges."""

    def __init__(self, plan: Plan, name: str, parent: Scope | None, source: Edge | None = None) -> None:
        self.plan = plan
        self.name = name
        self.parent = parent
        self.source = source
        """The stream whose children it is made for; `None` of the request."""
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.steps: list[Step] = []
        self.logs: list[tuple[int, bool, bool]] = []
        """Cells that hold a log from the beginning on: their number, whether it is text, and whether it is ordered."""
        self.size = 0

    def encloses(self, other: Scope | None) -> bool:
        """Whether what is in this scope can be seen in `other`."""
        while other is not None and other is not self:
            other = other.parent
        return other is self


class Edge:
    """What is made in one place of one scope. `kind` is its type as a stage would annotate it."""

    __slots__ = ("index", "kind", "name", "scope")

    def __init__(self, scope: Scope, kind: Any, name: str, *, made: bool = True, ordered: bool = False) -> None:
        """`made`: by a step of this scope, rather than handed to it."""
        self.scope = scope
        self.kind = kind
        self.name = name
        self.index = scope.size
        scope.size += 1
        if made and is_log(kind):
            scope.logs.append((self.index, kind is Text, ordered))

    def __repr__(self) -> str:
        return f"<{self.name}: {words(self.kind)}>"


def is_log(kind: Any) -> bool:
    """Whether it comes bit by bit."""
    return kind is Text or is_stream(kind)


def sources_of(step: Any) -> list[Edge]:
    """The edges that a step reads."""
    if hasattr(step, "arguments"):
        return [argument.edge for argument in step.arguments if argument.edge is not None]
    return list(getattr(step, "sources", None) or [step.source])


writing: list[Plan] = []
"""The pipelines whose functions are being read now, innermost last."""


class Plan:
    """A traced pipeline. `outputs` are what the client gets, by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root = Scope(self, name, None)
        self.inputs: dict[str, Edge] = {}
        self.outputs: dict[str, Edge] = {}
        self.shown: dict[str, Edge] = {}
        """What the client is told of besides, by name."""
        self.depths: dict[Step, int] = {}
        """How many steps lie before each, along the longest way."""
        self.stack = [self.root]
        """The scopes that are being written now, innermost last; empty once the plan is made."""

    @property
    def current(self) -> Scope:
        """The scope that is being written. Raises ConfigError once the plan is made."""
        if not self.stack:
            raise ConfigError(f"pipeline {self.name!r} is made already; flows are used in its function alone")
        return self.stack[-1]

    def seen(self, edge: Edge, what: str) -> None:
        """Raises ConfigError, with the right shape, where `edge` cannot be used in the present scope."""
        if edge.scope.plan is not self:
            raise ConfigError(f"{what}: {edge.name!r} belongs to pipeline {edge.scope.plan.name!r}, not {self.name!r}")
        if edge.scope.encloses(self.current):
            return
        outer = edge.scope
        made = f"{what}: there is one {edge.name!r} ({words(edge.kind)}) for each of {_source(outer)!r}"
        if self.current.encloses(outer):
            raise ConfigError(
                f"{made}, and it is used outside of the map over them. Return it from the body, and use what the map "
                f"returns, a {words(stream_of(edge.kind))}: `{edge.name}s = {_source(outer)}.map({outer.name})`"
            )
        raise ConfigError(
            f"{made}, and it is used for each of {_source(self.current)!r}: they have no child in common. Make both in "
            f"the body of one map, as in `{_source(outer)}.map(lambda each: join(first(each), second(each)))`, or "
            f"use all of them at once outside of the maps: `join(firsts, seconds)` gives "
            f"(list[{words(edge.kind)}], …)"
        )


def _source(scope: Scope) -> str:
    return scope.source.name if scope.source is not None else scope.name
