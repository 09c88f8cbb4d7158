"""As `test_machine`, over typed nodes and edges, with attributes of edges that models read."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from foreserve.errors import BadRequest
from foreserve.graphs.changes import Changes
from foreserve.graphs.program import Program
from foreserve.graphs.schema import EdgeKey, EdgeType, NodeType, Schema, written
from foreserve.graphs.store import GraphStore
from foreserve.graphs.taking_apart import take_apart
from foreserve.graphs.writer import Submitted
from tests.graphs.machines import GraphMachine
from tests.graphs.models import error
from tests.graphs.typed import BUYS, KNOWS, SHOP, SOLD, hetero_model, shop_model

TYPES = {"user": NodeType(3, most=8), "item": NodeType(5, most=8)}
PLAIN = Schema(TYPES, {key: EdgeType(multi=key == KNOWS, expire_s=10.0) for key in (BUYS, SOLD, KNOWS)})
RICH = Schema(
    TYPES,
    {
        BUYS: EdgeType(multi=True, expire_s=10.0),
        SOLD: EdgeType(attributes=2, expire_s=10.0),
        KNOWS: EdgeType(expire_s=10.0),
    },
)
NODES = st.integers(0, 7)
PAIRS = st.lists(st.tuples(NODES, NODES), min_size=1, max_size=6)


@cache
def _taken_apart(made: str, aggr: str) -> tuple[torch.nn.Module, Schema, Program]:
    model, schema = (shop_model(aggr), RICH) if made == "hetero_conv" else (hetero_model(PLAIN, aggr), PLAIN)
    return model, schema, take_apart(model, schema)


class TypedMachine(GraphMachine):
    """Two types of nodes, three of edges."""

    @initialize(
        made=st.sampled_from(["hetero_conv", "to_hetero"]),
        aggr=st.sampled_from(["sum", "mean", "max"]),
        level=st.integers(0, 2),
        share=st.sampled_from([0.0, 0.25]),
        hot=st.sampled_from([0, 500]),
    )
    def begin(self, made: str, aggr: str, level: int, share: float, hot: int) -> None:
        self.model, schema, program = _taken_apart(made, aggr if made == "hetero_conv" else "sum")
        store = GraphStore(schema, torch.float64)
        none = {"source": np.empty(0, np.int64), "target": np.empty(0, np.int64), "time": np.empty(0)}
        edges = {
            key: none | ({"attributes": np.empty((0, 2))} if edge.attributes else {})
            for key, edge in schema.edges.items()
        }
        store.load({name: np.ones((3, node.features)) for name, node in schema.nodes.items()}, edges)
        self.opened(program, store, level=level, dense_share=share, hot_bytes=hot)
        self.there = {name: set(range(3)) for name in schema.nodes}

    def _row(self, type_: str) -> Any:
        return self.random.normal(size=(1, SHOP.nodes[type_].features))

    @rule(type_=st.sampled_from(["user", "item"]), node=NODES, what=st.sampled_from(["insert", "delete", "set"]))
    def node(self, type_: str, node: int, what: str) -> None:
        there = self.there[type_]
        if what == "insert":
            self.batch.insert_nodes(type_, [node], self._row(type_))
            there.add(node)
        elif node in there and what == "set":
            self.batch.set_features(type_, [node], self._row(type_))
        elif node in there:
            self.batch.delete_nodes(type_, [node])
            there.remove(node)

    @rule(key=st.sampled_from([BUYS, SOLD, KNOWS]), pairs=PAIRS, insert=st.booleans())
    def edges(self, key: EdgeKey, pairs: list[tuple[int, int]], insert: bool) -> None:
        known = [pair for pair in pairs if pair[0] in self.there[key[0]] and pair[1] in self.there[key[2]]]
        if not known:
            return
        source, target = np.array(known).T
        if insert:
            width = self.graph.store.schema.edges[key].attributes
            attributes = self.random.normal(size=(len(known), width)) if width else None
            self.batch.insert_edges(key, source, target, attributes=attributes)
        else:
            self.batch.delete_edges(key, source, target)

    def recovered(self, store: GraphStore) -> None:
        self.there = {name: set(store.alive(name).tolist()) for name in self.there}

    @rule(key=st.sampled_from([BUYS, SOLD, KNOWS]))
    def refuse(self, key: EdgeKey) -> None:
        version = self.graph.store.version
        [refused] = self.writer.write([Submitted(Changes().delete_edges(key, [0], [99]))], self.now)
        assert isinstance(refused, BadRequest)
        assert written(key) in str(refused)
        assert self.graph.store.version == version

    @precondition(lambda self: hasattr(self, "graph") and not len(self.batch))
    @invariant()
    def equals_full_recompute(self) -> None:
        for type_, there in self.there.items():
            assert self.graph.store.alive(type_).tolist() == sorted(there)
        for _ in range(3 if self.graph.hot else 1):
            assert error(self.graph, self.model) < 1e-11
        assert self.graph.drift() < 1e-11


TypedMachine.TestCase.settings = settings(
    max_examples=10, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestTypedMachine = TypedMachine.TestCase
