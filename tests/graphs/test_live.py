import threading

import numpy as np
import pytest
import torch

from foreserve.errors import BadRequest
from foreserve.graphs.changes import Changes
from foreserve.graphs.program import Topology
from foreserve.graphs.schema import EDGE, NODE, EdgeType, Schema
from tests.graphs.models import KINDS, error, live, loaded, mixed_batch, net


def test_unknown_nodes_and_types_are_refused() -> None:
    graph = live(net("gcn", [8, 5]), loaded(Schema.homogeneous(8), 20, 60))
    with pytest.raises(BadRequest, match=r"nodes\[1\]: there is no node 20"):
        graph.query(NODE, [3, 20])
    with pytest.raises(BadRequest, match="returns nothing for nodes of type 'user'; valid: node"):
        graph.query("user", [3])
    graph.apply(Changes().delete_nodes(NODE, [3]))
    with pytest.raises(BadRequest, match="no node 3"):
        graph.query(NODE, [3])
    assert graph.query(NODE, []).rows.shape == (0, 5)


def test_answers_come_in_the_order_of_the_question() -> None:
    graph = live(net("sage", [8, 16, 5]), loaded(Schema.homogeneous(8), 20, 60))
    both = graph.query(NODE, [7, 2, 7]).rows
    assert torch.equal(both[0], both[2])
    assert torch.allclose(both[1], graph.query(NODE, [2]).rows[0])
    assert not torch.allclose(both[0], both[1])


def test_a_deleted_node_can_come_back_within_a_batch() -> None:
    model = net("gcn", [8, 16, 5])
    graph = live(model, loaded(Schema.homogeneous(8), 60, 300), 2)
    random = np.random.default_rng(0)
    changes = Changes().insert_edges(EDGE, [0], [1]).delete_nodes(NODE, [0])
    changes.insert_nodes(NODE, [0], random.normal(size=(1, 8))).insert_edges(EDGE, [0, 5], [9, 0])
    graph.apply(changes)
    assert graph.store.edges[EDGE].out.degree(np.array([0])).tolist() == [1]
    assert error(graph, model) < 1e-12


def test_readers_see_one_version_while_updates_apply() -> None:
    """What a reader got must be what the oracle says of the version that the answer names."""
    model = net("gcn", [8, 16, 5])
    graph = live(model, loaded(Schema.homogeneous(8), 200, 1200))
    random = np.random.default_rng(0)
    seen: list[tuple[int, torch.Tensor]] = []
    done = threading.Event()
    asked = np.arange(0, 100)

    def read() -> None:
        while not done.is_set():
            answer = graph.query(NODE, asked)
            seen.append((answer.version, answer.rows))

    reader = threading.Thread(target=read)
    truth = {graph.store.version: graph.query(NODE, asked).rows}
    reader.start()
    for _ in range(60):
        batch = Changes().insert_edges(EDGE, random.integers(0, 200, 30), random.integers(0, 200, 30))
        batch.delete_edges(EDGE, random.integers(0, 200, 30), random.integers(0, 200, 30))
        batch.set_features(NODE, [3, 5], random.normal(size=(2, 8)))
        graph.apply(batch)
        truth[graph.store.version] = graph.query(NODE, asked).rows
    done.set()
    reader.join()
    assert error(graph, model) < 1e-12
    assert seen
    for version, rows in seen:
        assert torch.allclose(rows, truth[version], atol=1e-12)


@pytest.mark.parametrize("where", ["prepare", "propagate"])
def test_a_failure_on_the_way_leaves_the_old_version(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net("gcn", [8, 16, 5])
    graph = live(model, loaded(Schema.homogeneous(8), 60, 300), 2)
    before = graph.query(NODE, range(60))
    target = "foreserve.graphs.update._locals" if where == "propagate" else "foreserve.graphs.edges.EdgeStore.prepare"

    def fails(*_: object) -> None:
        raise MemoryError

    batch = mixed_batch(graph.store, 4, np.random.default_rng(0))
    with monkeypatch.context() as patch:
        patch.setattr(target, fails)
        with pytest.raises(MemoryError):
            graph.apply(batch)
    after = graph.query(NODE, range(60))
    assert after.version == before.version
    assert torch.equal(after.rows, before.rows)
    graph.apply(batch)
    assert error(graph, model) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_edges_expire_by_their_time(kind: str) -> None:
    model = net(kind, [8, 16, 5])
    graph = live(model, loaded(Schema.homogeneous(8, EdgeType(expire_s=5.0)), 60, 300), 2)
    graph.apply(Changes().insert_edges(EDGE, [0, 1, 2], [3, 4, 5], time=[10.0, 11.0, 12.0]))
    graph.apply(Changes().expire_edges(EDGE, 5.0))
    assert len(graph.store.edges[EDGE]) == 3
    assert error(graph, model) < 1e-12
    graph.apply(Changes().expire_edges(EDGE, 11.0))
    assert graph.store.edges[EDGE].columns()["source"].tolist() == [2]
    assert error(graph, model) < 1e-12


def test_drift_is_measured_and_refreshed_away() -> None:
    model = net("gcn", [8, 16, 5])
    graph = live(model, loaded(Schema.homogeneous(8), 60, 300), 2)
    assert graph.drift() < 1e-12
    hidden = next(value for value in graph.program.values if value.depth == 1)
    graph.tables.table(hidden)[3] += 1.0
    assert graph.drift() > 1e-3
    graph.refresh()
    assert graph.drift() < 1e-12


def test_weights_that_came_and_went_leave_exactly_what_was() -> None:
    """0.1 is another number in float32, in which weights are kept, than in float64, in which they are summed."""
    schema = Schema.homogeneous(8, EdgeType(weighted=True, multi=True))
    graph = live(net("gcn", [8, 5], weighted=True), loaded(schema, 20, 60, torch.float32))
    values = graph.tables.split.program.values
    sums = [value for value in values if isinstance(value.op, Topology) and value.op.what == "weight"]
    before = [graph.tables.table(value).clone() for value in sums]
    assert before
    for _ in range(20):
        graph.apply(Changes().insert_edges(EDGE, [3] * 100, [5] * 100, weight=[0.1] * 100))
        graph.apply(Changes().delete_edges(EDGE, [3] * 100, [5] * 100))
    for value, rows in zip(sums, before, strict=True):
        assert torch.equal(graph.tables.table(value), rows)
