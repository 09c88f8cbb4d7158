"""Models over users and items, the graph of their tests, and batches that change it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import relu
from torch_geometric.nn import GATConv, GCNConv, HeteroConv, SAGEConv, to_hetero

from foreserve.graphs.changes import Changes
from foreserve.graphs.schema import EdgeKey, EdgeType, NodeType, Schema
from foreserve.graphs.store import GraphStore


class Shop(torch.nn.Module):
    """Two layers over users and items, as the documentation of PyTorch Geometric writes it."""

    def __init__(self, aggr: str) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList()
        for width in (8, 4):
            convs: dict[Any, Any] = {
                BUYS: SAGEConv((-1, -1), width),
                SOLD: GATConv((-1, -1), width, add_self_loops=False, edge_dim=2),
                KNOWS: GCNConv(-1, width),
            }
            self.layers.append(HeteroConv(convs, aggr=aggr))
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x_dict: Any, edge_index_dict: Any, edge_attr_dict: Any) -> Any:
        for layer in self.layers:
            x_dict = layer(x_dict, edge_index_dict, edge_attr_dict=edge_attr_dict)
            x_dict = {name: relu(x) for name, x in x_dict.items()}
        return {"user": self.head(x_dict["user"])}


BUYS: EdgeKey = ("user", "buys", "item")
SOLD: EdgeKey = ("item", "sold", "user")
KNOWS: EdgeKey = ("user", "knows", "user")
SHOP = Schema(
    {"user": NodeType(3), "item": NodeType(5)},
    {BUYS: EdgeType(multi=True), SOLD: EdgeType(attributes=2), KNOWS: EdgeType()},
)


class Homogeneous(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = SAGEConv((-1, -1), 8)
        self.b = SAGEConv((-1, -1), 4, aggr="sum")
        self.lin = torch.nn.Linear(8, 8)

    def forward(self, x: Any, edge_index: Any) -> Any:
        x = self.lin(self.a(x, edge_index).relu())
        return self.b(x, edge_index)


def shop_store(random: np.random.Generator) -> GraphStore:
    store = GraphStore(SHOP, torch.float64)
    edges = {}
    for (source, relation, target), edge in SHOP.edges.items():
        count = {"user": 20, "item": 12}
        pairs = np.unique(np.stack([random.integers(0, count[end], 60) for end in (source, target)]), axis=1)
        edges[source, relation, target] = {"source": pairs[0], "target": pairs[1]}
        if edge.attributes:
            edges[source, relation, target]["attributes"] = random.normal(size=(pairs.shape[1], 2))
    store.load({"user": random.normal(size=(20, 3)), "item": random.normal(size=(12, 5))}, edges)
    return store


def shop_batch(store: GraphStore, step: int, random: np.random.Generator) -> Changes:
    changes = Changes()
    users, items = store.alive("user"), store.alive("item")
    if step % 3 == 0:
        changes.insert_nodes("user", [store.nodes["user"].count], random.normal(size=(1, 3)))
    changes.insert_edges(BUYS, random.choice(users, 3), random.choice(items, 3))
    changes.insert_edges(SOLD, random.choice(items, 2), random.choice(users, 2), attributes=random.normal(size=(2, 2)))
    changes.insert_edges(KNOWS, random.choice(users, 2), random.choice(users, 2))
    for key, edges in store.edges.items():
        there = edges.columns()
        at = random.integers(0, len(there["source"]), 2)
        changes.delete_edges(key, there["source"][at], there["target"][at])
    changes.set_features("item", [random.choice(items)], random.normal(size=(1, 5)))
    if step % 5 == 4:
        changes.delete_nodes("item", [random.choice(items)])
    return changes


def shop_model(aggr: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = Shop(aggr).double()
    make_lazy(model)
    return model


def make_lazy(model: torch.nn.Module) -> None:
    x = {"user": torch.randn(2, 3).double(), "item": torch.randn(2, 5).double()}
    edges = {key: torch.tensor([[0, 1], [1, 0]]) for key in SHOP.edges}
    model(x, edges, {SOLD: torch.randn(2, 2).double()})


def hetero_model(schema: Schema, aggr: str) -> torch.nn.Module:
    """`Homogeneous` made for types by `to_hetero`."""
    torch.manual_seed(0)
    model: Any = to_hetero(Homogeneous(), (list(schema.nodes), list(schema.edges)), aggr=aggr).double()
    with torch.no_grad():
        model(
            {"user": torch.randn(2, 3).double(), "item": torch.randn(2, 5).double()},
            {key: torch.tensor([[0, 1], [1, 0]]) for key in schema.edges},
        )
    return model  # type: ignore[no-any-return]
