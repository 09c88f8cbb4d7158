import collections
from typing import Any

import numpy as np
import pytest
import torch

from foreserve.errors import BadRequest, ConfigError
from foreserve.graphs.changes import Changes
from foreserve.graphs.schema import EDGE, NODE, EdgeType, NodeType, Schema, edge_key
from foreserve.graphs.store import GraphStore
from tests.graphs.models import power_law


class Plain:
    """The same graph in dictionaries, change by change."""

    def __init__(self, edge: EdgeType) -> None:
        self.edge = edge
        self.nodes: dict[int, Any] = {}
        self.edges: dict[tuple[int, int], list[Any]] = collections.defaultdict(list)

    def delete_node(self, node: int) -> None:
        del self.nodes[node]
        for pair in list(self.edges):
            if node in pair:
                del self.edges[pair]

    def insert(self, pair: tuple[int, int], carried: Any) -> None:
        self.edges[pair] = [*(self.edges[pair] if self.edge.multi else []), carried]

    def delete(self, pair: tuple[int, int]) -> None:
        self.edges[pair] = self.edges[pair][1:]

    def expire(self, until: float) -> None:
        for pair, copies in self.edges.items():
            self.edges[pair] = [each for each in copies if each[1] > until]


def held(store: GraphStore) -> dict[tuple[int, int], list[Any]]:
    columns = store.edges[EDGE].columns()
    made = collections.defaultdict(list)
    weight = columns.get("weight", np.ones(len(columns["source"])))
    for n, pair in enumerate(zip(columns["source"].tolist(), columns["target"].tolist(), strict=True)):
        made[pair].append((float(weight[n]), float(columns["time"][n]), *columns["attributes"][n].tolist()))
    return dict(made)


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_stream_of_batches_leaves_what_one_change_after_the_other_would(
    multi: bool, weighted: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    edge = EdgeType(weighted=weighted, multi=multi, expire_s=5.0, attributes=2)
    store, plain = GraphStore(Schema.homogeneous(2, edge), torch.float64), Plain(edge)
    for step in range(80):
        now = float(step)
        changes = Changes()
        if step % 7 == 6:
            changes.expire_edges(EDGE, now - 5)
            plain.expire(now - 5)
        else:
            for _ in range(random.integers(1, 12)):
                _one_change(changes, plain, random, now)
        store.commit(store.prepare(Changes.decode(changes.encode()), now))
        assert held(store) == {pair: copies for pair, copies in plain.edges.items() if copies}
        assert _outgoing(store) == {pair: len(copies) for pair, copies in plain.edges.items() if copies}
        assert store.alive(NODE).tolist() == sorted(plain.nodes)
        for node, features in plain.nodes.items():
            assert store.nodes[NODE].features[node].tolist() == features.tolist()
    assert store.version == 80


def _outgoing(store: GraphStore) -> dict[tuple[int, int], int]:
    out = store.edges[EDGE].out
    of, slots = out.entries(np.arange(len(out.start)))
    return dict(collections.Counter(zip(of.tolist(), out.columns["neighbour"][slots].tolist(), strict=True)))


def _one_change(changes: Changes, plain: Plain, random: np.random.Generator, now: float) -> None:
    what = random.integers(0, 10)
    if what < 2 or len(plain.nodes) < 3:
        node, features = int(random.integers(0, 15)), random.normal(size=2)
        changes.insert_nodes(NODE, [node], [features])
        plain.nodes[node] = features
    elif what == 2:
        node = int(random.choice(list(plain.nodes)))
        changes.delete_nodes(NODE, [node])
        plain.delete_node(node)
    elif what == 3:
        node, features = int(random.choice(list(plain.nodes))), random.normal(size=2)
        changes.set_features(NODE, [node], [features])
        plain.nodes[node] = features
    else:
        a, b = (int(each) for each in random.choice(list(plain.nodes), 2))
        if what < 7:
            weight = float(random.integers(1, 3)) if plain.edge.weighted else 1.0
            time, attributes = now + float(random.integers(0, 2)), random.integers(0, 2, 2).astype(float)
            given = [weight] if plain.edge.weighted else None
            changes.insert_edges(EDGE, [a], [b], weight=given, attributes=[attributes], time=[time])
            plain.insert((a, b), (weight, time, *attributes))
        else:
            changes.delete_edges(EDGE, [a], [b])
            plain.delete((a, b))


def test_an_insert_of_what_is_there_and_then_a_delete_deletes() -> None:
    store = GraphStore(Schema.homogeneous(1))
    store.load({NODE: np.ones((2, 1))}, {EDGE: {"source": np.array([0]), "target": np.array([1])}})
    store.commit(store.prepare(Changes().insert_edges(EDGE, [0], [1]).delete_edges(EDGE, [0], [1])))
    assert len(store.edges[EDGE]) == 0


def test_what_is_so_already_is_ignored_and_counted() -> None:
    store = GraphStore(Schema.homogeneous(1, EdgeType(weighted=True)))
    edges = {"source": np.array([0]), "target": np.array([1]), "weight": np.array([2.0])}
    store.load({NODE: np.ones((2, 1))}, {EDGE: edges})
    changes = Changes().insert_edges(EDGE, [0], [1], weight=[2.0]).delete_edges(EDGE, [1], [0])
    prepared = store.prepare(changes)
    assert prepared.ignored == 2
    assert len(prepared.edges[EDGE].removed["source"]) == len(prepared.edges[EDGE].inserted["source"]) == 0
    prepared = store.prepare(Changes().insert_edges(EDGE, [0], [1], weight=[3.0]))
    assert prepared.edges[EDGE].removed["weight"].tolist() == [2.0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (Changes().insert_edges(EDGE, [0, 7], [1, 1]), r"changes\[1\].*no node 7 of type 'node'"),
        (Changes().delete_edges(EDGE, [0], [-1]), "no node -1"),
        (Changes().set_features(NODE, [5], [[1.0, 2.0]]), r"changes\[0\] \(set_features node\): there is no node 5"),
        (Changes().delete_nodes(NODE, [0, 0]), r"changes\[1\].*no node 0"),
        (Changes().delete_nodes(NODE, [0]).insert_edges(EDGE, [1], [0]), r"changes\[1\].*no node 0"),
        (Changes().insert_nodes(NODE, [3], [[1.0]]), "has width 1; node has 2"),
        (Changes().insert_nodes(NODE, [3, 4], [[1.0, 2.0], [float("nan"), 1.0]]), r"changes\[1\].*not finite"),
        (Changes().insert_nodes(NODE, [99], [[1.0, 2.0]]), "id 99 is out of bounds; valid: 0 to 9"),
        (Changes().insert_nodes("user", [1], [[1.0, 2.0]]), "no node type 'user'; valid: node"),
        (Changes().insert_edges(("a", "b", "c"), [0], [1]), "no edge type 'a:b:c'; valid: node:to:node"),
        (Changes().insert_edges(EDGE, [0], [1], weight=[1.0]), "has source, target, weight; it takes source, target"),
        (Changes().expire_edges(EDGE, 1.0), "have no time"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place_and_changes_nothing(changes: Changes, words: str) -> None:
    store = GraphStore(Schema({NODE: NodeType(2, most=10)}, {EDGE: EdgeType()}))
    store.load({NODE: np.ones((3, 2))}, {EDGE: {"source": np.array([0]), "target": np.array([1])}})
    with pytest.raises(BadRequest, match=words):
        store.prepare(changes)
    assert store.version == 1
    assert store.nodes[NODE].count == 3


def test_rows_of_other_counts_and_ids_that_are_none_are_refused() -> None:
    with pytest.raises(BadRequest, match="1 rows of `target` for 2 changes"):
        Changes().insert_edges(EDGE, [0, 1], [1])
    with pytest.raises(BadRequest, match="whole numbers"):
        Changes().delete_nodes(NODE, [0.5])
    with pytest.raises(BadRequest, match="same width"):
        Changes().insert_nodes(NODE, [0, 1], [[1.0], [1.0, 2.0]])
    with pytest.raises(BadRequest, match="no changes of a graph"):
        Changes.decode(b"\x00nothing")


def test_lists_that_outgrow_their_room_are_packed_again() -> None:
    store = GraphStore(Schema.homogeneous(1, EdgeType(multi=True)))
    store.load({NODE: np.ones((50, 1))}, {EDGE: {"source": np.arange(50), "target": np.arange(50)}})
    random = np.random.default_rng(0)
    for _ in range(200):
        store.commit(
            store.prepare(Changes().insert_edges(EDGE, random.integers(0, 50, 20), random.integers(0, 50, 20)))
        )
    edges = store.edges[EDGE]
    assert len(edges) == 50 + 4000
    assert edges.into.tail < 3 * len(edges)


def test_an_edge_takes_few_bytes() -> None:
    source, target = power_law(20_000, 400_000)
    store = GraphStore(Schema.homogeneous(1))
    store.load({NODE: np.zeros((20_000, 1))}, {EDGE: {"source": source, "target": target}})
    assert store.nbytes / len(store.edges[EDGE]) < 16


def test_types_are_checked_and_named_in_one_word() -> None:
    with pytest.raises(ConfigError, match="no node type 'item'; valid: user"):
        Schema({"user": NodeType(2)}, {("user", "buys", "item"): EdgeType()})
    with pytest.raises(ConfigError, match="`features` must be at least 1"):
        Schema({"user": NodeType(0)}, {})
    buys, sells = ("u", "buys", "i"), ("u", "sells", "i")
    assert edge_key("buys", {buys: 1, sells: 2}) == buys
    assert edge_key("u:sells:i", {buys: 1, sells: 2}) == sells
    assert edge_key("gives", {buys: 1}) is None
