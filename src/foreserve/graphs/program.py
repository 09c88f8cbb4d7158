"""A model taken apart: the values that it computes for each node, and from which other values each is made.

A value is a row for every node of one type. It is a feature row, a number that the edges alone decide (a degree), a
*local* function of other rows of the same node, or an *aggregate* of its in-neighbours' rows. Its depth is the number
of aggregates on the longest way to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from foreserve.graphs.schema import EdgeKey


class Gathered(NamedTuple):
    """The edges into some nodes, node by node: what an aggregate is made of.

    `source` and `segment` have an element for each edge: its source's row in what the sources bring, and its target's
    place. `offsets` has the first edge of each target. `weight` and `attributes` are there where the edges have them.
    """

    source: Tensor
    segment: Tensor
    offsets: Tensor
    weight: Tensor | None
    attributes: Tensor | None


class Reduce(Protocol):
    """How the rows of in-neighbours become one row."""

    @property
    def loops(self) -> bool:
        """Whether an edge to oneself counts."""

    @property
    def additive(self) -> bool:
        """Whether the result is a sum, in which one term can be exchanged."""

    def __call__(self, edges: Gathered, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """A row for each target, of rows of its sources and of rows of its own."""


@dataclass(frozen=True, slots=True)
class Feature:
    """The feature row of the graph."""


@dataclass(frozen=True, slots=True)
class Topology:
    """A number that the edges of type `key` into a node decide: how many, the sum of their weights, or the weight of
    the last edge to itself (`fill` if there is none). `loops` says whether edges to oneself are counted."""

    key: EdgeKey
    what: Literal["count", "weight", "loop"]
    loops: bool = True
    fill: float = 1.0


@dataclass(frozen=True, slots=True)
class Aggregate:
    """`reduce` over the edges of type `key`, of the values `sources` at their sources and `targets` at their target."""

    key: EdgeKey
    reduce: Reduce
    sources: tuple[int, ...]
    targets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for a value among the arguments of a local function."""

    id: int


@dataclass(frozen=True, slots=True)
class Local:
    """`function` of rows, row by row. Each `Ref` in `args` and `kwargs` stands for the rows of a value.

    Where the function returns several results `pick` is the one meant.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[int, ...]
    pick: int | None = None

    def __call__(self, rows: Mapping[int, Tensor]) -> Tensor:
        made = self.function(*filled(self.args, rows), **filled(dict(self.kwargs), rows))
        result: Tensor = made if self.pick is None else made[self.pick]
        return result


def filled(tree: Any, rows: Mapping[int, Tensor]) -> Any:
    """`tree` with the rows that each `Ref` in it stands for."""
    if isinstance(tree, Ref):
        return rows[tree.id]
    if isinstance(tree, (tuple, list)):
        return type(tree)([filled(each, rows) for each in tree])
    if isinstance(tree, dict):
        return {name: filled(each, rows) for name, each in tree.items()}
    return tree


@dataclass(frozen=True, slots=True)
class Value:
    """Rows of `shape` for the nodes of `type`, made by `op`."""

    id: int
    type: str
    depth: int
    shape: tuple[int, ...]
    op: Feature | Topology | Aggregate | Local

    @property
    def inputs(self) -> tuple[int, ...]:
        """The values it is made of."""
        match self.op:
            case Local(inputs=inputs):
                return inputs
            case Aggregate(sources=sources, targets=targets):
                return sources + targets
            case _:
                return ()


@dataclass(frozen=True)
class Program:
    """All values, each after its inputs, and which of them the model returns, by node type."""

    values: tuple[Value, ...]
    outputs: Mapping[str, int]

    @property
    def depth(self) -> int:
        """The number of layers: of aggregates on the longest way to an output."""
        return max(self.values[each].depth for each in self.outputs.values())

    def aggregates(self) -> list[Value]:
        """The values that read neighbours."""
        return [value for value in self.values if isinstance(value.op, Aggregate)]


def pruned(values: Sequence[Value], outputs: Mapping[str, int]) -> Program:
    """The program of the values that the outputs need."""
    needed = set(outputs.values())
    for value in reversed(values):
        if value.id in needed:
            needed.update(value.inputs)
    kept = [value for value in values if value.id in needed]
    new = {value.id: n for n, value in enumerate(kept)}
    return Program(tuple(_renamed(value, new) for value in kept), {name: new[each] for name, each in outputs.items()})


def _renamed(value: Value, new: Mapping[int, int]) -> Value:
    def refs(tree: Any) -> Any:
        if isinstance(tree, Ref):
            return Ref(new[tree.id])
        if isinstance(tree, (tuple, list)):
            return type(tree)([refs(each) for each in tree])
        return {name: refs(each) for name, each in tree.items()} if isinstance(tree, dict) else tree

    op = value.op
    if isinstance(op, Local):
        inputs = tuple(new[each] for each in op.inputs)
        op = Local(op.function, refs(op.args), refs(dict(op.kwargs)), inputs, op.pick)
    elif isinstance(op, Aggregate):
        op = Aggregate(op.key, op.reduce, tuple(new[i] for i in op.sources), tuple(new[i] for i in op.targets))
    return Value(new[value.id], value.type, value.depth, value.shape, op)
