"""Any sequence of operations on any kind of model leaves what full recompute gives."""

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
from foreserve.graphs.schema import EDGE, NODE, EdgeType, Schema
from foreserve.graphs.store import GraphStore
from foreserve.graphs.taking_apart import take_apart
from foreserve.graphs.writer import Submitted
from tests.graphs.machines import GraphMachine
from tests.graphs.models import KINDS, WEIGHTED, error, net

NODES = st.integers(0, 11)
PAIRS = st.lists(st.tuples(NODES, NODES), min_size=1, max_size=6)


@cache
def _taken_apart(kind: str, weighted: bool, multi: bool) -> tuple[torch.nn.Module, Program]:
    model = net(kind, [2, 3, 2], weighted)
    return model, take_apart(model, _schema(weighted, multi))


def _schema(weighted: bool, multi: bool) -> Schema:
    return Schema.homogeneous(2, EdgeType(weighted=weighted, multi=multi, expire_s=10.0), most=12)


class Machine(GraphMachine):
    """Nodes and edges of one type."""

    @initialize(
        kind=st.sampled_from(sorted(KINDS)),
        weighted=st.booleans(),
        multi=st.booleans(),
        level=st.integers(0, 2),
        share=st.sampled_from([0.0, 0.25]),
        hot=st.sampled_from([0, 100, 2_000]),
    )
    def begin(self, kind: str, weighted: bool, multi: bool, level: int, share: float, hot: int) -> None:
        weighted = weighted and kind in WEIGHTED
        store = GraphStore(_schema(weighted, multi), torch.float64)
        none: dict[str, Any] = {name: np.empty(0, np.int64) for name in ("source", "target", "weight", "time")}
        store.load({NODE: np.ones((4, 2))}, {EDGE: none})
        self.model, program = _taken_apart(kind, weighted, multi)
        self.opened(program, store, level=level, dense_share=share, hot_bytes=hot)
        self.there = set(range(4))

    @rule(node=NODES)
    def insert_node(self, node: int) -> None:
        self.batch.insert_nodes(NODE, [node], self.random.normal(size=(1, 2)))
        self.there.add(node)

    @rule(node=NODES)
    def delete_node(self, node: int) -> None:
        if node in self.there:
            self.batch.delete_nodes(NODE, [node])
            self.there.remove(node)

    @rule(node=NODES)
    def set_features(self, node: int) -> None:
        if node in self.there:
            self.batch.set_features(NODE, [node], self.random.normal(size=(1, 2)))

    @rule(pairs=PAIRS, insert=st.booleans())
    def edges(self, pairs: list[tuple[int, int]], insert: bool) -> None:
        known = [pair for pair in pairs if pair[0] in self.there and pair[1] in self.there]
        if known:
            source, target = np.array(known).T
            if insert:
                weighted = self.graph.store.schema.edges[EDGE].weighted
                weight = self.random.uniform(0.5, 1.5, len(known)) if weighted else None
                self.batch.insert_edges(EDGE, source, target, weight=weight)
            else:
                self.batch.delete_edges(EDGE, source, target)

    def recovered(self, store: GraphStore) -> None:
        self.there = set(store.alive(NODE).tolist())

    @rule()
    def refuse(self) -> None:
        version = self.graph.store.version
        batch = Changes().insert_edges(EDGE, [0], [99])
        [refused] = self.writer.write([Submitted(batch)], self.now)
        assert isinstance(refused, BadRequest)
        assert self.graph.store.version == version

    @precondition(lambda self: hasattr(self, "graph") and not len(self.batch))
    @invariant()
    def equals_full_recompute(self) -> None:
        assert self.graph.store.alive(NODE).tolist() == sorted(self.there)
        if self.there:
            for _ in range(3 if self.graph.hot else 1):  # kept the second time, found the third
                assert error(self.graph, self.model) < 1e-11
        assert self.graph.drift() < 1e-11


Machine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestMachine = Machine.TestCase
