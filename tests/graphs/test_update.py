from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.nn import GCNConv, GINConv, SAGEConv

from foreserve.graphs import update
from foreserve.graphs.changes import Changes
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.schema import EDGE, NODE, EdgeType, Schema
from foreserve.graphs.store import GraphStore
from foreserve.graphs.taking_apart import take_apart
from tests.graphs.models import KINDS, WEIGHTED, Net, columns, error, live, loaded, mixed_batch, net

VECTORS: dict[str, Any] = {
    "sage": [([1, 3, 5], [1, 4, 8]), ([1, 4, 5], [1, 7, 9]), ([1, 7, 7], [1, 14, 14])],
    "gin": [
        ([1.1, 3.2, 5.3], [1.21, 4.62, 9.03]),
        ([1.1, 6.2, 5.3], [1.21, 13.22, 12.03]),
        ([1.1, 7.2, 7.5], [1.21, 15.42, 15.45]),
    ],
    "gcn": [
        ([1, 1.707107, 2.5], [1, 1.560660, 2.103553]),
        ([1, 2.468762, 2.316497], [1, 2.345977, 2.166116]),
        ([1, 3.5, 3.5], [1, 3.5, 3.5]),
    ],
}
TINY = {
    "sage": lambda a, b: SAGEConv(a, b),
    "gin": lambda a, b: GINConv(torch.nn.Linear(a, b), eps=0.1),
    "gcn": lambda a, b: GCNConv(a, b),
}


def tiny(kind: str, level: int) -> LiveGraph:
    model = Net(TINY[kind], [1, 1, 1]).double()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 1.0 if parameter.dim() == 2 else 0.0)
    store = GraphStore(Schema.homogeneous(1), torch.float64)
    store.load({NODE: [[1.0], [2.0], [3.0]]}, {EDGE: {"source": np.array([0, 1]), "target": np.array([1, 2])}})
    return live(model, store, level)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("kind", ["sage", "gin", "gcn"])
def test_the_specifications_three_nodes(kind: str, level: int) -> None:
    graph = tiny(kind, level)
    batches = [None, Changes().insert_edges(EDGE, [2], [1])]
    batches.append(Changes().delete_edges(EDGE, [0], [1]).set_features(NODE, [2], [[5.0]]))
    for batch, (_, answers) in zip(batches, VECTORS[kind], strict=True):
        if batch is not None:
            graph.apply(batch)
        assert graph.query(NODE, [0, 1, 2]).rows.flatten().tolist() == pytest.approx(answers, abs=1e-6)


def test_a_degree_that_changes_sends_the_nodes_own_message_anew() -> None:
    pushes = {}
    for kind in VECTORS:
        pushes[kind] = tiny(kind, 1).apply(Changes().insert_edges(EDGE, [2], [1])).effort.pushes
    assert pushes == {"gcn": 2, "sage": 1, "gin": 1}


@pytest.mark.parametrize("dims", [[8, 16, 5], [8, 5, 16, 3]])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sixty_batches_leave_what_full_recompute_gives(kind: str, dims: list[int], dtype: torch.dtype) -> None:
    weighted = kind in WEIGHTED and dims[-1] == 3
    schema = Schema.homogeneous(8, EdgeType(weighted=weighted, multi=dims[-1] == 5))
    model = net(kind, dims, weighted)
    program = take_apart(model.to(dtype), schema)
    levels = range(program.depth + 1) if program.depth < 4 else (0, 2, program.depth)
    graphs = [LiveGraph(program, loaded(schema, 120, 600, dtype), level) for level in levels]
    random = np.random.default_rng(3)
    for step in range(60):
        batch = mixed_batch(graphs[0].store, step, random)
        for graph in graphs:
            graph.apply(batch)
        if step % 6 == 5:
            worst = max(error(graph, model) for graph in graphs)
            assert worst < (1e-12 if dtype == torch.float64 else 1e-5)
    assert max(graph.drift() for graph in graphs) < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("kind", ["gcn", "sage", "sage_max", "gat"])
@pytest.mark.parametrize("share", [0.0, 1e9])
def test_dense_and_sparse_updates_agree(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = Schema.homogeneous(8)
    model = net(kind, [8, 16, 5])
    monkeypatch.setattr(update, "LEAST_DENSE", 0)
    graph = live(model, loaded(schema, 120, 600), 2, dense_share=share)
    random, dense = np.random.default_rng(3), 0
    for step in range(20):
        dense += graph.apply(mixed_batch(graph.store, step, random)).effort.dense
    assert error(graph, model) < 1e-12
    assert (dense > 0) == (share == 0.0)


@pytest.mark.parametrize("kind", ["gcn", "sage", "gin"])
def test_float32_does_not_drift(kind: str) -> None:
    schema = Schema.homogeneous(16)
    model = net(kind, [16, 32, 32, 8])
    graph = live(model.float(), loaded(schema, 200, 1600, torch.float32), 2)
    random = np.random.default_rng(0)
    for _ in range(300):
        there, alive = columns(graph.store), graph.store.alive(NODE)
        at = int(random.integers(0, len(there["source"])))
        batch = Changes().insert_edges(EDGE, [random.choice(alive)], [random.choice(alive)])
        batch.delete_edges(EDGE, there["source"][at : at + 1], there["target"][at : at + 1])
        graph.apply(batch.set_features(NODE, [random.choice(alive)], random.normal(size=(1, 16))))
    assert error(graph, model) < 1e-5


# --- the mutations that these tests must catch


def _worst(kind: str) -> float:
    schema = Schema.homogeneous(8)
    model = net(kind, [8, 16, 16, 5])
    graph = live(model, loaded(schema, 120, 600), 2)
    random = np.random.default_rng(3)
    for step in range(20):
        graph.apply(mixed_batch(graph.store, step, random))
    return error(graph, model)


@pytest.mark.parametrize("kind", ["gcn", "sage"])
def test_mutation_an_edge_that_comes_brings_the_wrong_message(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _worst(kind) < 1e-12
    rows = update.Tables.rows

    def old(self: Any, value: Any, ids: Any, dirty: Any = None) -> Any:
        # What changed edges bring is asked for by the sources' ids; there the old rows are given.
        return rows(self, value, ids, None if update.pushing else dirty)

    push = update._push

    def marked(*args: Any) -> None:
        update.pushing = True
        try:
            push(*args)
        finally:
            update.pushing = False

    monkeypatch.setattr(update, "pushing", False, raising=False)
    monkeypatch.setattr(update, "_push", marked)
    monkeypatch.setattr(update.Tables, "rows", old)
    assert _worst(kind) > 1e-3


def test_mutation_a_degree_does_not_change_the_senders_message(monkeypatch: pytest.MonkeyPatch) -> None:
    push = update._push

    def forgetful(tables: Any, value: Any, op: Any, prepared: Any, made: Any) -> None:
        """Senders whose features are the same send nothing."""
        message = op.sources[0]
        new = made.dirty.get(message)
        if new is not None and tables.split.program.values[message].depth == 0:
            net_ = prepared.nodes.get(NODE)
            kept = np.isin(new.ids, [] if net_ is None else net_.ids)
            made.dirty[message] = update.Rows(new.ids[kept], new.rows[torch.from_numpy(kept)])
        push(tables, value, op, prepared, made)

    monkeypatch.setattr(update, "_push", forgetful)
    assert _worst("gcn") > 1e-3
    assert _worst("sage") < 1e-12  # a mean is local to its target


def test_mutation_only_what_the_sum_changed_is_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of zero changes a mean all the same."""
    schema = Schema.homogeneous(2)
    model = net("sage", [2, 4, 3])
    store = GraphStore(schema, torch.float64)
    store.load({NODE: [[1.0, 2.0], [0.0, 0.0], [1.0, 1.0]]}, {EDGE: {"source": np.array([0]), "target": np.array([2])}})
    graph = live(model, store, 1)
    graph.apply(Changes().insert_edges(EDGE, [1], [2]))
    assert error(graph, model) < 1e-12
    graph.apply(Changes().insert_nodes(NODE, [3], [[0.0, 0.0]]))  # alone, and nothing but its bias
    assert error(graph, model) < 1e-12


# --- work


@pytest.mark.parametrize("kind", ["gcn", "sage", "gin"])
@pytest.mark.parametrize("layers", [2, 3])
def test_the_cut_and_the_differences_spare_work(kind: str, layers: int) -> None:
    schema = Schema.homogeneous(4)
    model = net(kind, [4] * (layers + 1))
    program = take_apart(model, schema)
    random = np.random.default_rng(0)
    store, other = (loaded(schema, 20_000, 100_000, skew=1.5) for _ in range(2))
    there = columns(store)
    cut, full = LiveGraph(program, store), LiveGraph(program, other, layers)
    pushes, all_pushes, affected = 0, 0, 0
    for _ in range(10):
        at = random.integers(0, len(there["source"]), 5)
        a, b = random.integers(0, 20_000, 5), random.integers(0, 20_000, 5)
        batch = Changes().insert_edges(EDGE, np.append(a, b), np.append(b, a))
        source, target = there["source"][at], there["target"][at]
        batch.delete_edges(EDGE, np.append(source, target), np.append(target, source))
        affected += _affected(cut.store, batch, layers, gcn=kind == "gcn")
        pushes += cut.apply(batch).effort.pushes
        all_pushes += full.apply(batch).effort.pushes
    assert all_pushes >= 4 * pushes
    assert affected >= 4 * all_pushes
    assert layers * len(cut.store.edges[EDGE]) > 100 * pushes / 10
    asked = [cut.query(NODE, [int(each)]).edges for each in random.integers(0, 20_000, 200)]
    assert np.mean(asked) < 10


def _affected(store: GraphStore, batch: Changes, layers: int, *, gcn: bool) -> int:
    """Edges that are read where every node that a change reaches is computed anew from all its in-edges."""
    edges = store.edges[EDGE]
    ends = np.unique(np.concatenate([each for group in batch.groups for each in (group.columns["target"],)]))
    reached, read = ends, 0
    for layer in range(layers):
        if layer or gcn:
            _, slots = edges.out.entries(reached)
            reached = np.union1d(reached, edges.out.columns["neighbour"][slots])
        reached = np.union1d(reached, ends)
        read += int(edges.into.degree(reached).sum())
    return read


# --- invariants


def test_a_batch_and_its_inverse_leave_what_was() -> None:
    graph = live(net("gcn", [8, 16, 5]), loaded(Schema.homogeneous(8), 60, 300), 2)
    every = graph.store.alive(NODE)
    before = graph.query(NODE, every).rows.clone()
    there = columns(graph.store)
    pairs = set(zip(there["source"].tolist(), there["target"].tolist(), strict=True))
    new = [(a, b) for a in range(9) for b in range(20, 24) if (a, b) not in pairs]
    source, target = np.array(new).T
    features = graph.store.nodes[NODE].features[:3].clone()
    graph.apply(
        Changes()
        .insert_edges(EDGE, source, target)
        .delete_edges(EDGE, there["source"][:5], there["target"][:5])
        .set_features(NODE, [0, 1, 2], features + 1)
    )
    assert not torch.allclose(graph.query(NODE, every).rows, before)
    graph.apply(
        Changes()
        .delete_edges(EDGE, source, target)
        .insert_edges(EDGE, there["source"][:5], there["target"][:5])
        .set_features(NODE, [0, 1, 2], features)
    )
    assert torch.allclose(graph.query(NODE, every).rows, before, atol=1e-12)


def test_a_batch_that_cancels_itself_takes_no_work_and_changes_no_row() -> None:
    graph = live(net("gcn", [8, 16, 5]), loaded(Schema.homogeneous(8), 60, 300), 1)
    before = graph.query(NODE, graph.store.alive(NODE)).rows.clone()
    applied = graph.apply(Changes().insert_edges(EDGE, [3], [3]).delete_edges(EDGE, [3], [3]))
    assert (applied.effort.pushes, applied.effort.rows) == (0, 0)
    assert torch.equal(graph.query(NODE, graph.store.alive(NODE)).rows, before)


def test_the_order_of_independent_batches_is_nothing() -> None:
    answers = []
    for turn in (1, -1):
        graph = live(net("gin", [8, 16, 5]), loaded(Schema.homogeneous(8), 60, 300), 1)
        batches = [Changes().insert_edges(EDGE, [n], [59 - n]) for n in range(5)]
        for batch in batches[::turn]:
            graph.apply(batch)
        answers.append(graph.query(NODE, range(60)).rows)
    assert torch.allclose(*answers, atol=1e-12)
