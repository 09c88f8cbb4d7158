"""Models, graphs and the oracle of the graph tests: PyTorch Geometric itself, on what the store holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch_geometric.nn import APPNP, GATConv, GCNConv, GINConv, GraphConv, SAGEConv, SGConv

from foreserve.graphs.changes import Changes
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.schema import EDGE, NODE, EdgeType, Schema
from foreserve.graphs.store import GraphStore
from foreserve.graphs.taking_apart import call_words, given_edges, take_apart


class Net(torch.nn.Module):
    """Layers of one kind with ReLU between."""

    def __init__(self, layer: Callable[[int, int], torch.nn.Module], dims: list[int], weighted: bool = False) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layer(a, b) for a, b in pairwise(dims))
        self.weighted = weighted

    def forward(self, x: Any, edge_index: Any, edge_weight: Any = None) -> Any:
        more = (edge_weight,) if self.weighted else ()
        for n, layer in enumerate(self.layers):
            x = layer(x, edge_index, *more)
            x = x.relu() if n < len(self.layers) - 1 else x
        return x


def mlp(a: int, b: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(a, b), torch.nn.ReLU(), torch.nn.Linear(b, b))


class Smoothed(torch.nn.Module):
    """A layer per node, then personalised PageRank."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.lin = torch.nn.Linear(a, b)
        self.hops = APPNP(2, 0.1)

    def forward(self, x: Any, *edges: Any) -> Any:
        return self.hops(self.lin(x), *edges)


KINDS: dict[str, Callable[[int, int], torch.nn.Module]] = {
    "gcn": GCNConv,
    "gcn_no_loops": lambda a, b: GCNConv(a, b, add_self_loops=False),
    "gcn_plain": lambda a, b: GCNConv(a, b, normalize=False),
    "sage": SAGEConv,
    "sage_sum": lambda a, b: SAGEConv(a, b, aggr="sum", normalize=True, project=True),
    "sage_max": lambda a, b: SAGEConv(a, b, aggr="max"),
    "gin": lambda a, b: GINConv(mlp(a, b), eps=0.1),
    "graph": GraphConv,
    "graph_mean": lambda a, b: GraphConv(a, b, aggr="mean"),
    "sg": lambda a, b: SGConv(a, b, K=2),
    "appnp": Smoothed,
    "gat": lambda a, b: GATConv(a, b, heads=2, concat=False, residual=True),
}
WEIGHTED = ("gcn", "gcn_no_loops", "graph", "graph_mean", "sg", "appnp")


def net(kind: str, dims: list[int], weighted: bool = False, dtype: torch.dtype = torch.float64) -> Net:
    """With biases that are not zero."""
    torch.manual_seed(1)
    made = Net(KINDS[kind], dims, weighted).to(dtype)
    for parameter in made.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter)
    return made


def columns(store: GraphStore) -> dict[str, np.ndarray]:
    return store.edges[EDGE].columns()


def oracle(model: torch.nn.Module, store: GraphStore) -> dict[str, torch.Tensor]:
    """The model's own forward over all that the store holds, in double precision."""
    model = copy.deepcopy(model).double()
    schema = store.schema
    given = {key: edges.columns() for key, edges in store.edges.items()}

    def tensors(name: str) -> dict[Any, torch.Tensor]:
        return {key: torch.from_numpy(c[name]).double() for key, c in given.items() if name in c}

    index = {key: torch.from_numpy(np.stack((c["source"], c["target"])).astype(np.int64)) for key, c in given.items()}
    features = {name: nodes.features[: nodes.count].double() for name, nodes in store.nodes.items()}
    edges = given_edges(schema, index, tensors("weight"), tensors("attributes"))
    with torch.no_grad():
        made = model(**call_words(model, schema, features, edges, "the oracle"))
    return made if isinstance(made, dict) else {next(iter(schema.nodes)): made}


def error(live: LiveGraph, model: torch.nn.Module) -> float:
    """The largest difference of any node's answer from the oracle's, relative to the oracle's largest number."""
    worst = 0.0
    for name, want in oracle(model, live.store).items():
        alive = live.store.alive(name)
        if name in live.program.outputs and len(alive):
            got = live.query(name, alive).rows.double()
            worst = max(worst, float((got - want[alive]).abs().max() / want[alive].abs().max().clamp(min=1e-30)))
    return worst


def power_law(nodes: int, edges: int, seed: int = 0, skew: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Directed edges, each pair in both directions, no pair twice."""
    random = np.random.default_rng(seed)
    a = np.minimum((nodes * random.random(edges // 2) ** skew).astype(np.int64), nodes - 1)
    b = random.integers(0, nodes, edges // 2)
    pairs = np.unique(np.stack((np.append(a, b), np.append(b, a))), axis=1)
    return pairs[0], pairs[1]


def loaded(
    schema: Schema,
    nodes: int,
    edges: int,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    skew: float = 3.0,
) -> GraphStore:
    """A store with a power-law graph."""
    random = np.random.default_rng(seed)
    store = GraphStore(schema, dtype)
    source, target = power_law(nodes, edges, seed, skew)
    made: dict[str, np.ndarray] = {"source": source, "target": target}
    edge: EdgeType = schema.edges[EDGE]
    if edge.weighted:
        made["weight"] = random.uniform(0.5, 1.5, len(source))
    if edge.attributes:
        made["attributes"] = random.normal(size=(len(source), edge.attributes))
    if edge.expire_s is not None:
        made["time"] = np.zeros(len(source))
    store.load({NODE: random.normal(size=(nodes, schema.nodes[NODE].features))}, {EDGE: made})
    return store


def mixed_batch(store: GraphStore, step: int, random: np.random.Generator) -> Changes:
    """As the specification has it: some inserts, deletes and features; at times a new node, at times one less."""
    edge = store.schema.edges[EDGE]
    width = store.schema.nodes[NODE].features
    alive, there = store.alive(NODE), columns(store)
    changes = Changes()

    def insert(source: Any, target: Any) -> None:
        n = len(source)
        weight = random.uniform(0.5, 1.5, n) if edge.weighted else None
        attributes = random.normal(size=(n, edge.attributes)) if edge.attributes else None
        changes.insert_edges(EDGE, source, target, weight=weight, attributes=attributes)

    if step % 5 == 4:
        new, other = store.nodes[NODE].count, random.choice(alive)
        changes.insert_nodes(NODE, [new], random.normal(size=(1, width)))
        insert([new, other], [other, new])
    n = int(random.integers(0, 5))
    insert(random.choice(alive, n), random.choice(alive, n))
    at = random.integers(0, len(there["source"]), int(random.integers(0, 5)))
    changes.delete_edges(EDGE, there["source"][at], there["target"][at])
    changes.set_features(NODE, random.choice(alive, 2), random.normal(size=(2, width)))
    if step % 7 == 6:
        changes.delete_nodes(NODE, [random.choice(alive)])
    return changes


def live(model: torch.nn.Module, store: GraphStore, level: int | None = None, **words: Any) -> LiveGraph:
    return LiveGraph(take_apart(model.to(store.dtype), store.schema), store, level, **words)
