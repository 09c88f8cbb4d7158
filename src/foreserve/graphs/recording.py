"""Taking a model apart by running it once, on a small made graph, with tensors that write down what is done to them.

Layers that pass messages are replaced by what `layers` says they are made of; everything else must work row by row.
What does not is refused with its name and the line of the model's code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreserve.errors import ConfigError
from foreserve.graphs.program import Aggregate, Feature, Gathered, Local, Program, Reduce, Ref, Topology, Value, pruned
from foreserve.graphs.rowwise import fault, out_of_place
from foreserve.graphs.schema import EdgeKey, Schema, written


class CannotTakeApart(ConfigError):
    """A layer or a function that the incremental form has no place for; the message names it."""


@dataclass
class Example:
    """A small graph: features by node type; source, target, weight and attributes by edge type."""

    features: dict[str, Tensor]
    edges: dict[EdgeKey, tuple[Tensor, Tensor]]
    weights: dict[EdgeKey, Tensor]
    attributes: dict[EdgeKey, Tensor]


def example(schema: Schema, seed: int, dtype: torch.dtype, device: torch.device) -> Example:
    """A graph of `schema`, no two types with the same number of nodes, with nodes alone and edges to oneself."""
    random = torch.Generator().manual_seed(seed)
    count = {name: 23 + 2 * n + 7 * seed for n, name in enumerate(schema.nodes)}
    made = Example({}, {}, {}, {})
    for name, node in schema.nodes.items():
        made.features[name] = torch.randn(count[name], node.features, generator=random).to(device, dtype)
    for key, edge in schema.edges.items():
        edges = 3 * max(count[key[0]], count[key[2]])
        source = torch.randint(0, count[key[0]] - 1, (edges,), generator=random)
        target = torch.randint(0, count[key[2]] - 1, (edges,), generator=random)
        if not edge.multi:
            pairs = torch.unique(torch.stack((source, target)), dim=1)
            source, target = pairs[:, torch.randperm(pairs.shape[1], generator=random)]
        made.edges[key] = (source.to(device), target.to(device))
        made.weights[key] = (torch.rand(len(source), generator=random) + 0.5).to(device, dtype)
        made.attributes[key] = torch.randn(len(source), edge.attributes, generator=random).to(device, dtype)
    return made


class Recorded(Tensor):
    """Rows for the example's nodes of one type, with the value that they are. `stacked` are in dimension 1."""

    value: Value
    recorder: Recorder
    stacked: bool

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mine = next(each for each in _leaves((args, kwargs or {})) if isinstance(each, Recorded))
        return mine.recorder.call(func, args, kwargs or {})


class EdgeToken(Tensor):
    """The edges of one type, or what they carry, on their way to a layer. Nothing may be done to them before."""

    key: EdgeKey
    what: str

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in _METADATA or (name == "__get__" and func.__self__.__name__ in _ATTRIBUTES):
            return func(*_map(_plain, args), **_map(_plain, kwargs or {}))
        token = next(each for each in _leaves((args, kwargs or {})) if isinstance(each, EdgeToken))
        what = f"{token.what} of {written(token.key)!r}"
        raise CannotTakeApart(f"{_line()}: `{name}` is applied to {what}; edges may only be given to layers")


_METADATA = {"size", "dim", "numel", "stride", "__len__", "__repr__", "__format__", "__hash__"}
_METADATA |= {"is_floating_point", "is_complex", "ndimension", "element_size", "get_device"}
_METADATA |= {"new_ones", "new_zeros", "new_full", "new_tensor", "new_empty"}  # constants, whatever they are asked of
_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_sparse", "is_leaf"}
_ATTRIBUTES |= {"is_quantized", "is_mps", "is_meta", "is_nested", "grad_fn", "grad", "itemsize", "nbytes"}


class Recorder:
    """Writes down what one run of a model does."""

    def __init__(self, schema: Schema, graph: Example) -> None:
        self.schema = schema
        self.graph = graph
        self.values: list[Value] = []
        self._topology: dict[Topology, Recorded] = {}

    def features(self) -> dict[str, Recorded]:
        """Where it begins, by node type."""
        return {name: self._add(Feature(), name, 0, rows) for name, rows in self.graph.features.items()}

    def token(self, key: EdgeKey, what: str, rows: Tensor) -> EdgeToken:
        """Stands for the edges of a type, or for what they carry, in the call of the model."""
        made = rows.as_subclass(EdgeToken)
        made.key, made.what = key, what
        return made

    def program(self, outputs: Mapping[str, Recorded]) -> Program:
        """What was written down, as far as these need it."""
        return pruned(self.values, {name: rows.value.id for name, rows in outputs.items()})

    def _add(self, op: Any, type_: str, depth: int, rows: Tensor) -> Recorded:
        made: Recorded = rows.as_subclass(Recorded)
        made.value = Value(len(self.values), type_, depth, tuple(rows.shape[1:]), op)
        made.recorder, made.stacked = self, False
        self.values.append(made.value)
        return made

    # --- what layers are made of

    def topology(self, key: EdgeKey, what: Any, loops: bool = True, fill: float = 1.0) -> Recorded:
        """A number that the edges into a node decide, of shape [nodes, 1]. See `Topology`."""
        op = Topology(key, what, loops, fill)
        if op not in self._topology:
            source, target = self.graph.edges[key]
            weight = self.graph.weights[key]
            rows = weight.new_zeros(len(self.graph.features[key[2]]), 1)
            mask = source == target if what == "loop" else torch.ones_like(source, dtype=torch.bool)
            if what == "loop":
                rows += fill
                for n in torch.nonzero(mask).flatten().tolist():
                    rows[target[n]] = weight[n]
            else:
                mask = mask if loops else source != target
                terms = weight if what == "weight" else torch.ones_like(weight)
                rows.index_add_(0, target[mask], terms[mask].unsqueeze(1))
            self._topology[op] = self._add(op, key[2], 0, rows)
        return self._topology[op]

    def aggregate(
        self, key: EdgeKey, reduce: Reduce, sources: Sequence[Tensor], targets: Sequence[Tensor] = ()
    ) -> Recorded:
        """`reduce` over the edges of type `key`."""
        for rows, end in [(each, key[0]) for each in sources] + [(each, key[2]) for each in targets]:
            if not isinstance(rows, Recorded) or rows.value.type != end:
                has = rows.value.type if isinstance(rows, Recorded) else "no node"
                raise CannotTakeApart(f"{_line()}: edges {written(key)!r} are given rows of {has}, not of {end!r}")
        edges = self.gathered(key, reduce.loops)
        rows = reduce(edges, [_plain(each) for each in sources], [_plain(each) for each in targets])
        op = Aggregate(key, reduce, _ids(sources), _ids(targets))
        depth = 1 + max(self.values[each].depth for each in op.sources + op.targets)
        return self._add(op, key[2], depth, rows)

    def gathered(self, key: EdgeKey, loops: bool) -> Gathered:
        """The example's edges of a type, by their targets."""
        source, target = self.graph.edges[key]
        order = torch.argsort(target, stable=True)
        if not loops:
            order = order[source[order] != target[order]]
        sizes = torch.bincount(target[order], minlength=len(self.graph.features[key[2]]))
        return Gathered(
            source=source[order],
            segment=target[order],
            offsets=torch.cumsum(sizes, 0) - sizes,
            weight=self.graph.weights[key][order],
            attributes=self.graph.attributes[key][order],
        )

    def local(self, function: Callable[..., Tensor], *inputs: Tensor) -> Recorded:
        """`function` of rows, which works row by row, as one step."""
        return self._record(function, inputs, {}, function(*(_plain(each) for each in inputs)))

    # --- what the model does between them

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One function of torch on recorded rows."""
        name = getattr(func, "__name__", str(func))
        if name in _METADATA or (name == "__get__" and func.__self__.__name__ in _ATTRIBUTES):
            return func(*_map(_plain, args), **_map(_plain, kwargs))
        func, in_place, kwargs = out_of_place(func, name, kwargs)
        recorded = [each for each in _leaves((args, kwargs)) if isinstance(each, Recorded)]
        if len({each.value.type for each in recorded}) > 1:
            types = ", ".join(sorted({each.value.type for each in recorded}))
            raise CannotTakeApart(f"{_line()}: `{name}` mixes rows of the node types {types}")
        if any(isinstance(each, EdgeToken) for each in _leaves((args, kwargs))):
            raise CannotTakeApart(f"{_line()}: `{name}` mixes rows of nodes with edges")
        made = func(*_map(_plain, args), **_map(_plain, kwargs))
        stacked = any(each.stacked for each in recorded)
        if (wrong := fault(name, args, kwargs, made, recorded, stacked)) is not None:
            raise CannotTakeApart(f"{_line()}: `{name}` {wrong}")
        if isinstance(made, (tuple, list)):
            parts = tuple(self._record(func, args, kwargs, part, pick=n) for n, part in enumerate(made))
            return type(made)(parts) if hasattr(made, "n_fields") else parts  # `max` names its two results
        if name in ("view", "reshape", "expand"):
            # Whatever number of rows the model asks for here, elsewhere there are others.
            args, kwargs = (args[0], (-1, *made.shape[1:])), {}
        nodes = recorded[0].shape[1 if recorded[0].stacked else 0]
        result = self._record(func, args, kwargs, made)
        result.stacked = made.dim() > 1 and made.shape[0] != nodes and made.shape[1] == nodes
        if in_place:
            target = args[0]
            with torch._C.DisableTorchFunctionSubclass():
                target.data = result.as_subclass(Tensor)
            target.value, target.stacked = result.value, result.stacked
            return target
        return result

    def _record(self, func: Any, args: Any, kwargs: dict[str, Any], made: Tensor, pick: int | None = None) -> Recorded:
        recorded = [each for each in _leaves((args, kwargs)) if isinstance(each, Recorded)]
        inputs = tuple(dict.fromkeys(each.value.id for each in recorded))
        op = Local(func, _map(_ref, tuple(args)), _map(_ref, kwargs), inputs, pick)
        return self._add(op, recorded[0].value.type, max(each.value.depth for each in recorded), _plain(made))


def _plain(each: Any) -> Any:
    return each.as_subclass(Tensor) if isinstance(each, (Recorded, EdgeToken)) else each


def _ids(rows: Sequence[Any]) -> tuple[int, ...]:
    return tuple(each.value.id for each in rows)


def _ref(each: Any) -> Any:
    return Ref(each.value.id) if isinstance(each, Recorded) else each


def _map(change: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, (tuple, list)):
        return type(tree)([_map(change, each) for each in tree])
    if isinstance(tree, dict):
        return {name: _map(change, each) for name, each in tree.items()}
    return change(tree)


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, (tuple, list)):
        return [leaf for each in tree for leaf in _leaves(each)]
    if isinstance(tree, dict):
        return _leaves(list(tree.values()))
    return [tree]


def _line() -> str:
    """The line of the user's code that is running, as `file.py:12`."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not any(part in file for part in ("/torch/", "/torch_geometric/", "/foreserve/graphs/", "<")):
            return f"{file.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "the model"
