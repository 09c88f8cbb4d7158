"""The graph as it stands: nodes with features, edges of every type, one version after the other.

A batch is prepared beside the graph and committed in one short step. Only one writer does both; readers read between
two commits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foreserve.graphs.adjacency import Columns, Ints
from foreserve.graphs.changes import Changes
from foreserve.graphs.edges import EdgeEdit, EdgeStore
from foreserve.graphs.frozen import Frozen
from foreserve.graphs.net import EdgeNet, NodeNet, edge_net, groups_of, node_net
from foreserve.graphs.schema import EdgeKey, Schema
from foreserve.graphs.validation import key_of, validate

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class NodeStore:
    """Nodes of one type: row `id` of `features` is node `id`, if `alive[id]`. Ids reach below `count`."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.features = torch.zeros((0, width), dtype=dtype, device=device)
        self.alive = np.zeros(0, bool)
        self.count = 0

    @property
    def capacity(self) -> int:
        return len(self.alive)

    def grow(self, count: int) -> None:
        """Make place for ids below `count`. What a reader has in hand stays as it is."""
        if count > self.capacity:
            more = max(count - self.capacity, self.capacity // 4)
            self.features = grown(self.features, self.capacity + more)
            self.alive = np.append(self.alive, np.zeros(more, bool))


class Prepared(NamedTuple):
    """A batch that fits, as it will be committed. `counts` are the ids' bounds after it, by node type."""

    nodes: dict[str, NodeNet]
    edges: dict[EdgeKey, EdgeEdit]
    counts: dict[str, int]

    @property
    def ignored(self) -> int:
        """Changes that came to nothing."""
        return sum(edit.ignored for edit in self.edges.values())


class GraphStore:
    """A graph of `schema`. Features, weights and attributes have `dtype`; features lie on `device`."""

    def __init__(self, schema: Schema, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        self.schema = schema
        self.dtype = dtype
        self.device = torch.device(device)
        self.nodes = {name: NodeStore(node.features, dtype, self.device) for name, node in schema.nodes.items()}
        self.edges = {key: EdgeStore(edge, _NUMPY[dtype]) for key, edge in schema.edges.items()}
        self.version = 0
        self._frozen: Frozen | None = None

    def load(
        self, features: Mapping[str, Any], edges: Mapping[EdgeKey, Columns], alive: Mapping[str, Any] | None = None
    ) -> None:
        """Take this graph in place of what is there, without checks; see `loading` for what has them.

        `features` are rows by node type; `edges` are columns `source`, `target` and what the type carries.
        """
        for name, nodes in self.nodes.items():
            rows = torch.as_tensor(features[name])
            nodes.features = rows.to(self.device, self.dtype, copy=True)
            nodes.count = len(rows)
            nodes.alive = np.ones(len(rows), bool) if alive is None else np.array(alive[name], bool)
        for key, store in self.edges.items():
            store.load(self.nodes[key[0]].count, self.nodes[key[2]].count, edges[key])
        self.version = 1

    @property
    def nbytes(self) -> int:
        """Of the edges. Features are `nodes[...].features.nbytes`."""
        return sum(store.nbytes for store in self.edges.values())

    # --- change

    def prepare(self, changes: Changes, at: float = 0.0) -> Prepared:
        """What `changes` amount to; `at` is the time of edges that bring none. Raises BadRequest where they do not fit.

        Readers see nothing of it.
        """
        groups = changes.groups
        timelines = validate(groups, self.schema, {name: nodes.alive for name, nodes in self.nodes.items()})
        nodes = {
            name: node_net(timelines[name], [g for g in groups if g.type == name and "id" in g.columns], store.alive)
            for name, store in self.nodes.items()
            if len(timelines[name].id)
        }
        counts = {name: max(store.count, _bound(nodes.get(name))) for name, store in self.nodes.items()}
        # Also for those that a later change of the batch takes out again.
        self._grow({name: int(timeline.id.max(initial=-1)) + 1 for name, timeline in timelines.items()})
        nets: dict[EdgeKey, EdgeNet] = {}
        for group in groups:
            if group.kind == "expire_edges":
                key = key_of(group, self.schema)
                nets[key] = self.edges[key].expired(float(group.columns["until"].max(initial=-np.inf)))
        for key, store in self.edges.items():
            mine = groups_of(groups, self.schema, key)
            if mine or any(len(timelines[end].deleted()[0]) for end in (key[0], key[2])):
                nets[key] = edge_net(key, self.schema.edges[key], mine, timelines, store, at)
        return Prepared(nodes, {key: self.edges[key].prepare(net) for key, net in nets.items()}, counts)

    def _grow(self, counts: Mapping[str, int]) -> None:
        for name, bound in counts.items():
            self.nodes[name].grow(bound)
        for key, store in self.edges.items():
            store.grow(self.nodes[key[0]].capacity, self.nodes[key[2]].capacity)

    def commit(self, prepared: Prepared) -> None:
        """Write a prepared batch: the next version. Nothing may have been committed since it was prepared."""
        frozen = self._frozen
        for name, net in prepared.nodes.items():
            store = self.nodes[name]
            if frozen is not None:
                frozen.features[name].before(store.features, np.append(net.ids, net.dead))
            if len(net.ids):
                rows = torch.as_tensor(net.features, dtype=self.dtype, device=self.device)
                store.features[torch.from_numpy(net.ids)] = rows
            store.features[torch.from_numpy(net.dead)] = 0.0
            store.alive[net.ids] = True
            store.alive[net.dead] = False
            store.count = prepared.counts[name]
        for key, edit in prepared.edges.items():
            edges = self.edges[key]
            if frozen is not None and edit.into.pool is None:
                frozen.edges[key].before(edges.into.columns, edit.into.slots)
            edges.commit(edit)
        self.version += 1

    def freeze(self) -> Frozen:
        """This version, kept until `thaw`: commits put aside what they overwrite of it. Between two commits."""
        if self._frozen is not None:
            raise RuntimeError("another version is being kept")
        self._frozen = Frozen(self)
        return self._frozen

    def thaw(self) -> None:
        """Nothing needs to be put aside any more. In any thread."""
        self._frozen = None

    def alive(self, type_: str) -> Ints:
        """The ids of the nodes that are there."""
        return np.flatnonzero(self.nodes[type_].alive)


def _bound(net: NodeNet | None) -> int:
    return 0 if net is None or not len(net.ids) else int(net.ids[-1]) + 1


def grown(rows: Tensor, count: int) -> Tensor:
    """A copy with zero rows behind it, `count` in all."""
    made = rows.new_zeros((count, *rows.shape[1:]))
    made[: len(rows)] = rows
    return made


def known(alive: NDArray[np.bool_], ids: Ints) -> NDArray[np.bool_]:
    """Which of `ids` are there."""
    inside = (ids >= 0) & (ids < len(alive))
    return inside & alive[np.where(inside, ids, 0)] if len(alive) else inside
