"""What PyTorch Geometric's layers are made of: rows before the edges, an aggregate over them, rows after.

    @takes_apart(MyConv)
    def my_conv(conv, made, x, edge_index):
        key = edges_of(edge_index)
        return conv.lin(made.aggregate(key, Sum(), [x]))

A function registered so is called in place of the layer's `forward`, with its arguments, while a model is recorded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import APPNP, GATConv, GCNConv, GINConv, GraphConv, HeteroConv, MessagePassing, SAGEConv, SGConv

from foreserve.graphs.recording import CannotTakeApart, EdgeToken, Recorder
from foreserve.graphs.reduces import Attention, Extreme, Sum
from foreserve.graphs.schema import EdgeKey, written

Apart = Callable[..., Any]

_APART: dict[type, Apart] = {}


def takes_apart(layer: type[MessagePassing]) -> Callable[[Apart], Apart]:
    """Register how layers of a class come apart. See the module's docstring."""

    def register(function: Apart) -> Apart:
        _APART[layer] = function
        return function

    return register


def apart(layer: MessagePassing, name: str) -> Apart:
    """How this layer comes apart. Raises CannotTakeApart, which names it."""
    kind = type(layer)
    found: Any = next((base for base in kind.__mro__ if base in _APART), None)
    if found is None:
        valid = ", ".join(sorted(each.__name__ for each in _APART))
        raise CannotTakeApart(f"layer {name!r} ({kind.__name__}) cannot be taken apart; these can: {valid}")
    for method in ("forward", "message", "aggregate", "update", "edge_update", "message_and_aggregate"):
        if getattr(kind, method) is not getattr(found, method):
            raise CannotTakeApart(f"layer {name!r} ({kind.__name__}) changes `{method}` of {found.__name__}")
    if layer.flow != "source_to_target":
        raise CannotTakeApart(f"layer {name!r} ({kind.__name__}) has the flow {layer.flow!r}; valid: source_to_target")
    function = _APART[found]

    def called(made: Recorder, *args: Any, **kwargs: Any) -> Any:
        try:
            bound = inspect.signature(found.forward).bind(layer, *args, **kwargs)
            return function(layer, made, **{n: v for n, v in bound.arguments.items() if n != "self" and v is not None})
        except CannotTakeApart as error:
            raise CannotTakeApart(f"layer {name!r} ({kind.__name__}): {error}") from None

    return called


def edges_of(edge_index: Tensor) -> EdgeKey:
    """The type of the edges that a layer is given. Raises CannotTakeApart for others than the model was called with."""
    if not isinstance(edge_index, EdgeToken) or edge_index.what != "edge_index":
        raise CannotTakeApart("is given other edges than those that the model is called with")
    return edge_index.key


def weighted(key: EdgeKey, edge_weight: Tensor | None) -> bool:
    """Whether a layer is given the weights of its edges. Raises CannotTakeApart for other weights."""
    if edge_weight is None:
        return False
    if not isinstance(edge_weight, EdgeToken) or edge_weight.what != "edge_weight" or edge_weight.key != key:
        raise CannotTakeApart(f"is given other weights than those of the edges {written(key)!r}")
    return True


def _ends(x: Any) -> tuple[Any, Any]:
    return (x[0], x[1]) if isinstance(x, (tuple, list)) else (x, x)


def _aggregated(conv: Any, made: Recorder, key: EdgeKey, rows: Tensor, with_weight: bool = False) -> Tensor:
    """By the layer's own `aggr`."""
    name = type(conv.aggr_module).__name__.removesuffix("Aggregation").lower()
    if name in ("sum", "add", "mean"):
        sum_ = made.aggregate(key, Sum(weighted=with_weight), [rows])
        return sum_ if name != "mean" else sum_ / made.topology(key, "count").clamp(min=1.0)
    if name in ("max", "min"):
        return made.aggregate(key, Extreme("amax" if name == "max" else "amin", weighted=with_weight), [rows])
    raise CannotTakeApart(f"has the aggregation {name!r}; valid: sum, mean, max, min")


class Symmetric:
    """Kipf and Welling's normalisation, arXiv:1609.02907: D^-1/2 (A + I) D^-1/2, as `gcn_norm` has it."""

    def __init__(self, made: Recorder, key: EdgeKey, with_weight: bool, self_loops: bool, fill: float = 1.0) -> None:
        if key[0] != key[2]:
            raise CannotTakeApart(f"normalises over edges {written(key)!r} between two types of nodes")
        self._made, self._key, self._self_loops = made, key, self_loops
        self._sum = Sum(weighted=with_weight, loops=not self_loops)
        degree = made.topology(key, "weight" if with_weight else "count", loops=not self_loops)
        # Without weights an edge to oneself has weight 1 there, whatever is to be filled in.
        self._own: Any = made.topology(key, "loop", fill=fill) if with_weight else 1.0
        self._scale = made.local(_inverse_root, degree + self._own if self_loops else degree)

    def __call__(self, rows: Tensor) -> Tensor:
        """One hop."""
        message = rows * self._scale
        sum_: Tensor = self._made.aggregate(self._key, self._sum, [message])
        if self._self_loops:
            sum_ = sum_ + (message * self._own if isinstance(self._own, Tensor) else message)
        return sum_ * self._scale


def _inverse_root(degree: Tensor) -> Tensor:
    return degree.pow(-0.5).masked_fill(degree == 0, 0.0)


def _fits_after(lin: Any) -> bool:
    """Whether the linear map shall come after the edges: where it widens the rows."""
    return int(lin.weight.shape[0]) > int(lin.weight.shape[1])


@takes_apart(GCNConv)
def _gcn(conv: Any, made: Recorder, x: Any, edge_index: Tensor, edge_weight: Any = None) -> Tensor:
    key = edges_of(edge_index)
    if isinstance(x, (tuple, list)):
        raise CannotTakeApart("takes nodes of one type")
    with_weight = weighted(key, edge_weight)
    if not conv.normalize:
        hop: Any = lambda rows: made.aggregate(key, Sum(weighted=with_weight), [rows])  # noqa: E731
    else:
        hop = Symmetric(made, key, with_weight, conv.add_self_loops, 2.0 if conv.improved else 1.0)
    out: Tensor = conv.lin(hop(x)) if _fits_after(conv.lin) else hop(conv.lin(x))
    return out if conv.bias is None else out + conv.bias


@takes_apart(SGConv)
def _sg(conv: Any, made: Recorder, x: Tensor, edge_index: Tensor, edge_weight: Any = None) -> Tensor:
    key = edges_of(edge_index)
    hop = Symmetric(made, key, weighted(key, edge_weight), conv.add_self_loops)
    after = _fits_after(conv.lin)
    # The map is linear, so it may come first; its bias may not.
    out = x if after else torch.nn.functional.linear(x, conv.lin.weight)
    for _ in range(conv.K):
        out = hop(out)
    if after:
        return conv.lin(out)  # type: ignore[no-any-return]
    return out if conv.lin.bias is None else out + conv.lin.bias


@takes_apart(APPNP)
def _appnp(conv: Any, made: Recorder, x: Tensor, edge_index: Tensor, edge_weight: Any = None) -> Tensor:
    key = edges_of(edge_index)
    if conv.normalize:
        hop: Any = Symmetric(made, key, weighted(key, edge_weight), conv.add_self_loops)
    else:
        with_weight = weighted(key, edge_weight)
        hop = lambda rows: made.aggregate(key, Sum(weighted=with_weight), [rows])  # noqa: E731
    out = x
    for _ in range(conv.K):
        out = hop(out) * (1 - conv.alpha) + x * conv.alpha
    return out


@takes_apart(SAGEConv)
def _sage(conv: Any, made: Recorder, x: Any, edge_index: Tensor, size: Any = None) -> Tensor:
    key = edges_of(edge_index)
    source, target = _ends(x)
    if conv.project and hasattr(conv, "lin"):
        source = conv.lin(source).relu()
    out: Tensor = conv.lin_l(_aggregated(conv, made, key, source))
    if conv.root_weight and target is not None:
        out = out + conv.lin_r(target)
    return torch.nn.functional.normalize(out, p=2.0, dim=-1) if conv.normalize else out


@takes_apart(GINConv)
def _gin(conv: Any, made: Recorder, x: Any, edge_index: Tensor, size: Any = None) -> Tensor:
    key = edges_of(edge_index)
    source, target = _ends(x)
    out = _aggregated(conv, made, key, source)
    if target is not None:
        out = out + target * (1 + conv.eps)
    return conv.nn(out)  # type: ignore[no-any-return]


@takes_apart(GraphConv)
def _graph(conv: Any, made: Recorder, x: Any, edge_index: Tensor, edge_weight: Any = None, size: Any = None) -> Tensor:
    key = edges_of(edge_index)
    source, target = _ends(x)
    out: Tensor = conv.lin_rel(_aggregated(conv, made, key, source, weighted(key, edge_weight)))
    return out + conv.lin_root(target) if target is not None else out


@takes_apart(GATConv)
def _gat(conv: Any, made: Recorder, x: Any, edge_index: Tensor, edge_attr: Any = None, **asked: Any) -> Tensor:
    key = edges_of(edge_index)
    if asked.get("return_attention_weights") is not None:
        raise CannotTakeApart("is asked for its attention weights")
    heads, width = conv.heads, conv.out_channels
    source, target = _ends(x)
    if target is None:
        raise CannotTakeApart("is given no rows of its targets")
    same = not isinstance(x, (tuple, list))
    maps = (conv.lin, conv.lin) if conv.lin is not None else (conv.lin_src, conv.lin_dst)
    residual = conv.res(target) if conv.res is not None else None
    rows = maps[0](source).view(-1, heads, width)
    own = rows if same and maps[0] is maps[1] else maps[1](target).view(-1, heads, width)
    score, own_score = (rows * conv.att_src).sum(dim=-1), (own * conv.att_dst).sum(dim=-1)
    edge_score = None
    if edge_attr is not None:
        if not isinstance(edge_attr, EdgeToken) or edge_attr.what != "edge_attr" or edge_attr.key != key:
            raise CannotTakeApart(f"is given other attributes than those of the edges {written(key)!r}")
        if conv.lin_edge is None:
            raise CannotTakeApart("is given attributes of edges but has no `edge_dim`")
        per_head = conv.lin_edge.weight.view(heads, width, -1) * conv.att_edge.view(heads, width, 1)
        edge_score = per_head.sum(dim=1).T.detach()
    if conv.add_self_loops and edge_score is not None and conv.fill_value != "mean":
        raise CannotTakeApart(f"has the `fill_value` {conv.fill_value!r}; valid: 'mean'")
    if conv.add_self_loops and key[0] != key[2]:
        raise CannotTakeApart(f"adds self-loops to edges {written(key)!r} between two types of nodes")
    itself = [rows, score] if conv.add_self_loops else []
    reduce = Attention(conv.negative_slope, conv.add_self_loops, edge_score)
    out: Tensor = made.aggregate(key, reduce, [rows, score], [own_score, *itself])
    out = out.reshape(-1, heads * width) if conv.concat else out.mean(dim=1)
    out = out if residual is None else out + residual
    return out if conv.bias is None else out + conv.bias


def layers_of(model: torch.nn.Module) -> list[tuple[str, MessagePassing]]:
    """The layers that pass messages, by name."""
    found = [(name, each) for name, each in model.named_modules() if isinstance(each, MessagePassing)]
    return [(name, each) for name, each in found if not isinstance(each, HeteroConv)]
