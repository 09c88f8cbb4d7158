from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import dropout, relu, softmax
from torch_geometric.nn import (
    GCNConv,
    GINConv,
    SAGEConv,
    TransformerConv,
    global_mean_pool,
)
from torch_geometric.utils import add_self_loops

from foreserve.errors import ConfigError
from foreserve.graphs.changes import Changes
from foreserve.graphs.layers import edges_of, takes_apart
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.recording import CannotTakeApart
from foreserve.graphs.reduces import Sum
from foreserve.graphs.schema import EdgeType, Schema
from foreserve.graphs.store import GraphStore
from foreserve.graphs.taking_apart import take_apart
from tests.graphs.models import error, live, loaded, mixed_batch, mlp
from tests.graphs.typed import BUYS, KNOWS, SHOP, SOLD, hetero_model, shop_batch, shop_model, shop_store


@pytest.mark.parametrize("aggr", ["sum", "mean", "max"])
def test_typed_nodes_and_edges_by_hetero_conv(aggr: str) -> None:
    random = np.random.default_rng(0)
    model = shop_model(aggr)
    program = take_apart(model, SHOP)
    for level in range(3):
        graph = LiveGraph(program, shop_store(random), level)
        for step in range(20):
            graph.apply(shop_batch(graph.store, step, random))
        assert error(graph, model) < 1e-12


@pytest.mark.parametrize("aggr", ["sum", "mean"])
def test_a_model_made_for_types_by_to_hetero(aggr: str) -> None:
    random = np.random.default_rng(0)
    schema = Schema(SHOP.nodes, {key: EdgeType() for key in (BUYS, SOLD)} | {KNOWS: EdgeType(multi=True)})
    model = hetero_model(schema, aggr)
    store = shop_store(random)
    typed = GraphStore(schema, torch.float64)
    typed.load(
        {name: nodes.features for name, nodes in store.nodes.items()},
        {key: edges.columns() for key, edges in store.edges.items()},
    )
    graph = live(model, typed, 1)
    assert set(graph.program.outputs) == {"user", "item"}
    for _ in range(10):
        users, items = random.integers(0, 20, 4), random.integers(0, 12, 4)
        graph.apply(Changes().insert_edges(BUYS, users, items).insert_edges(KNOWS, users, users[::-1]))
        graph.apply(Changes().delete_edges(SOLD, items, users).set_features("user", [3], random.normal(size=(1, 3))))
    assert error(graph, model) < 1e-12


class Between(torch.nn.Module):
    """A graph layer, and `then` of its rows."""

    def __init__(self, then: Callable[..., Any]) -> None:
        super().__init__()
        self.conv = GCNConv(8, 8)
        self.other = TransformerConv(8, 8)
        self.lstm = SAGEConv(8, 8, aggr="lstm")
        self.norm = torch.nn.BatchNorm1d(8)
        self.then = then

    def forward(self, x: Any, edge_index: Any) -> Any:
        return self.then(self, self.conv(x, edge_index), edge_index)


SCHEMA = Schema.homogeneous(8)


def _in_place(m: Any, x: Any, e: Any) -> Any:
    kept = x
    x = relu(m.norm(x), inplace=True)
    x += 1
    x.mul_(2.0)
    return torch.cat((x, kept), dim=-1)


@pytest.mark.parametrize(
    "then",
    [
        _in_place,
        lambda m, x, e: m.conv(x, e).view(x.size(0), 2, 4).mean(dim=1),
        lambda m, x, e: m.conv(dropout(x, training=m.training), e).log_softmax(dim=-1),
        lambda m, x, e: torch.stack((x, m.conv(x, e))).sum(dim=0),
        lambda m, x, e: torch.stack((x, m.conv(x, e)), dim=1).flatten(start_dim=1),
        lambda m, x, e: x[:, :4] * x[..., 4:] + x.norm(dim=1, keepdim=True).expand(x.size(0), 4),
        lambda m, x, e: torch.where(x > 0, x, x.exp() - 1).chunk(2, dim=1)[0],
        lambda m, x, e: x @ m.conv.lin.weight + x.new_ones(8),
        lambda m, x, e: x.max(dim=1, keepdim=True).values,
    ],
)
def test_what_works_row_by_row_may_stand_between(then: Callable[..., Any]) -> None:
    model = Between(then).double()
    random = np.random.default_rng(0)
    graph = live(model, loaded(SCHEMA, 60, 300))
    for step in range(8):
        graph.apply(mixed_batch(graph.store, step, random))
    assert error(graph, model) < 1e-12


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (lambda m, x, e: x - x.mean(0), r"test_taking_apart.py:\d+: `mean` goes over the nodes"),
        (lambda m, x, e: x * x.sum(), "`sum` goes over all nodes"),
        (lambda m, x, e: softmax(x, dim=0), "`softmax` goes over the nodes"),
        (lambda m, x, e: dropout(x), "`dropout` is in training"),
        (lambda m, x, e: m.other(x, e), r"layer 'other' \(TransformerConv\) cannot be taken apart; these can: APPNP"),
        (lambda m, x, e: m.lstm(x, e), r"layer 'lstm' \(SAGEConv\): has the aggregation 'lstm'"),
        (lambda m, x, e: x[:3], "`__getitem__` picks some of the nodes"),
        (lambda m, x, e: x[0] * x if x[0, 0] > 0 else x, "`__getitem__` picks some of the nodes"),
        (lambda m, x, e: m.conv(x, add_self_loops(e)[0]), "is applied to edge_index of 'node:to:node'"),
        (lambda m, x, e: m.conv(x, torch.tensor([[0], [1]])), "is given other edges"),
        (lambda m, x, e: x @ x.T, "`__get__` is not known to work row by row"),
        (lambda m, x, e: torch.ones(3, len(x), dtype=x.dtype) @ x, "multiplies the nodes from the left"),
        (lambda m, x, e: x + torch.ones(x.size(0), 1), "takes a constant with a row for each node"),
        (lambda m, x, e: global_mean_pool(x, None), "`mean` goes over the nodes"),
        (lambda m, x, e: (x, x), "it returns tuple; valid: rows of nodes"),
        (lambda m, x, e: x.sort(dim=0)[0], "`sort` goes over the nodes"),
        (lambda m, x, e: x.flip(0), "`flip` goes over the nodes"),
        (lambda m, x, e: x * len(x), "depends on the graph in a way that was not seen"),
    ],
)
def test_what_mixes_nodes_is_refused_by_name_and_line(then: Callable[..., Any], words: str) -> None:
    with pytest.raises(CannotTakeApart, match=words):
        take_apart(Between(then).double(), SCHEMA, "Between")


def test_a_layer_that_is_never_called_does_no_harm() -> None:
    assert take_apart(Between(lambda m, x, e: x), SCHEMA).depth == 1


def test_the_model_is_left_as_it_was() -> None:
    model = Between(lambda m, x, e: m.other(x, e))
    with pytest.raises(CannotTakeApart):
        take_apart(model, SCHEMA)
    assert model.conv(torch.ones(2, 8), torch.tensor([[0], [1]])).shape == (2, 8)


def test_what_the_schema_lacks_is_told() -> None:
    class Batched(torch.nn.Module):
        def forward(self, x: Any, edge_index: Any, batch: Any) -> Any:
            return x

    with pytest.raises(ConfigError, match="its forward takes 'batch', which a graph of this schema does not have"):
        take_apart(Batched(), SCHEMA, "Batched")
    with pytest.raises(ConfigError, match="its forward fails on a small graph of this schema"):
        take_apart(Between(lambda m, x, e: x), Schema.homogeneous(5))
    with pytest.raises(ConfigError, match="no layer that passes messages"):
        take_apart(Plain(), SCHEMA)


class Plain(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x.relu()


def test_edge_weights_that_the_model_does_not_ask_for_are_left_out() -> None:
    model = Between(lambda m, x, e: x).double()
    graph = live(model, loaded(Schema.homogeneous(8, EdgeType(weighted=True)), 60, 300))
    graph.apply(mixed_batch(graph.store, 4, np.random.default_rng(0)))
    assert error(graph, model) < 1e-12


class Doubled(GINConv):
    """A layer of one's own."""

    def message(self, x_j: Any) -> Any:
        return x_j * 2


def test_a_layer_of_ones_own_is_refused_until_it_is_told_how_it_comes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = Doubled(mlp(8, 4))

        def forward(self, x: Any, edge_index: Any) -> Any:
            return self.conv(x, edge_index)

    with pytest.raises(CannotTakeApart, match=r"layer 'conv' \(Doubled\) changes `message` of GINConv"):
        take_apart(Own().double(), SCHEMA)
    monkeypatch.setattr("foreserve.graphs.layers._APART", {})

    @takes_apart(Doubled)
    def doubled(conv: Any, made: Any, x: Any, edge_index: Any) -> Any:
        return conv.nn(made.aggregate(edges_of(edge_index), Sum(), [x * 2]) + x * (1 + conv.eps))

    model = Own().double()
    graph = live(model, loaded(SCHEMA, 60, 300), 1)
    graph.apply(mixed_batch(graph.store, 4, np.random.default_rng(0)))
    assert error(graph, model) < 1e-12
