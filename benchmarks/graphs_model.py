"""The models and graphs of the benchmark of graph services."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.nn import GCNConv, GINConv, SAGEConv

from foreserve.graphs.changes import Changes
from foreserve.graphs.schema import EDGE, NODE, EdgeType, Schema
from foreserve.graphs.store import GraphStore

WIDTH = 128


class Net(torch.nn.Module):
    """`layers` layers of one kind with ReLU between, all of width `width`."""

    def __init__(self, kind: str = "gcn", layers: int = 2, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(_layer(kind, width) for _ in range(layers))

    def forward(self, x: Any, edge_index: Any) -> Any:
        for n, layer in enumerate(self.layers):
            x = layer(x, edge_index)
            x = x.relu() if n + 1 < len(self.layers) else x
        return x


def _layer(kind: str, width: int) -> torch.nn.Module:
    if kind == "gin":
        made: torch.nn.Module = GINConv(torch.nn.Linear(width, width), eps=0.1)
    else:
        made = GCNConv(width, width) if kind == "gcn" else SAGEConv(width, width)
    return made


SCHEMA = Schema.homogeneous(WIDTH, EdgeType(multi=True))


def power_law(nodes: int, edges: int, random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Undirected pairs as two directed edges each; ends are drawn with density falling as id^(-1/3)."""
    a = np.minimum((nodes * random.random(edges // 2) ** 1.5).astype(np.int64), nodes - 1)
    b = np.minimum((nodes * random.random(edges // 2) ** 1.5).astype(np.int64), nodes - 1)
    return np.append(a, b), np.append(b, a)


def loaded(nodes: int, edges: int, random: np.random.Generator) -> GraphStore:
    """A store with such a graph and random features."""
    store = GraphStore(SCHEMA)
    source, target = power_law(nodes, edges, random)
    features = random.standard_normal((nodes, WIDTH), dtype=np.float32)
    store.load({NODE: features}, {EDGE: {"source": source, "target": target}})
    return store


def expiring(nodes: int, edges: int, random: np.random.Generator) -> GraphStore:
    """A store with a power-law graph of which one edge is a second older than the next one."""
    store = GraphStore(Schema.homogeneous(WIDTH, EdgeType(multi=True, expire_s=1.0)))
    source, target = power_law(nodes, edges, random)
    time = random.permutation(len(source)).astype(np.float64) + 1.0
    features = random.standard_normal((nodes, WIDTH), dtype=np.float32)
    store.load({NODE: features}, {EDGE: {"source": source, "target": target, "time": time}})
    return store


class Stream:
    """Batches of directed edge changes: as many edges go, of those that were there, as come."""

    def __init__(self, store: GraphStore, random: np.random.Generator, *, hubs: bool = False) -> None:
        columns = store.edges[EDGE].columns()
        self._order = random.permutation(len(columns["source"]))
        self._source, self._target = columns["source"], columns["target"]
        self._nodes = store.nodes[NODE].count
        self._random, self._hubs, self._at = random, hubs, 0

    def batch(self, changes: int) -> Changes:
        """The next one. With `hubs` an edge that comes has its ends where edges have theirs."""
        half = changes // 2
        gone = self._order[(self._at + np.arange(half)) % len(self._order)]
        self._at += half
        if self._hubs:
            at = self._random.integers(0, len(self._order), (2, half))
            ends = self._source[at[0]].astype(np.int64), self._target[at[1]].astype(np.int64)
        else:
            ends = tuple(self._random.integers(0, self._nodes, (2, half)))
        return Changes().insert_edges(EDGE, *ends).delete_edges(EDGE, self._source[gone], self._target[gone])
