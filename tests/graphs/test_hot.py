"""Outputs that are kept are those that would be computed, of the version that they are given with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foreserve.graphs.changes import Changes
from foreserve.graphs.hot import HotRows
from foreserve.graphs.program import Feature, Value
from foreserve.graphs.schema import EDGE, NODE, EdgeType, Schema
from tests.graphs.models import KINDS, WEIGHTED, error, live, loaded, mixed_batch, net

VALUE = Value(0, NODE, 0, (3,), Feature())


def _hot(most: int) -> HotRows:
    return HotRows(VALUE, most, torch.float64, torch.device("cpu"))


def _ask(hot: HotRows, ids: list[int]) -> list[bool]:
    """As a query does; a node's row is its id."""
    asked = np.array(ids)
    found = hot.find(asked)
    assert torch.equal(found.rows[:, 0], torch.from_numpy(asked[found.hit]).double())
    missed = asked[~found.hit]
    hot.offer(missed, torch.from_numpy(missed).double().unsqueeze(1).expand(-1, 3))
    assert len(hot) <= len(hot._owner)
    kept = np.flatnonzero(hot._place >= 0)
    assert sorted(hot._owner[hot._owner >= 0].tolist()) == kept.tolist()
    return found.hit.tolist()


def test_the_second_time_a_row_is_kept_and_the_third_time_found() -> None:
    hot = _hot(4)
    assert [_ask(hot, [5, 9])[0] for _ in range(3)] == [False, False, True]
    assert hot.hits == 2
    hot.forget(np.arange(6) == 5)
    assert _ask(hot, [5, 9]) == [False, True]
    hot.forget(None)
    assert len(hot) == 0


def test_there_are_never_more_than_there_is_place_for_and_who_is_asked_for_stays() -> None:
    hot, random = _hot(16), np.random.default_rng(0)
    favourite = []
    for _ in range(300):
        ids = np.unique(np.append(random.integers(0, 400, 6), 7))
        favourite.append(_ask(hot, ids.tolist())[int(np.flatnonzero(ids == 7)[0])])
    assert sum(favourite) > 250
    _ask(hot, list(range(400)))
    _ask(hot, list(range(400)))
    assert len(hot) == 16


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("level", [0, 1, 2])
def test_answers_are_those_of_full_recompute_through_every_change(kind: str, level: int) -> None:
    schema = Schema.homogeneous(4, EdgeType(weighted=kind in WEIGHTED, multi=True))
    model = net(kind, [4, 6, 3], kind in WEIGHTED)
    graph = live(model, loaded(schema, 80, 200), level, hot_bytes=10_000)
    random, hits = np.random.default_rng(0), 0
    for step in range(7):
        graph.apply(mixed_batch(graph.store, step, random))
        for _ in range(3):
            assert error(graph, model) < 1e-11
        hits += sum(each.hits for each in graph.hot.values())
    assert (hits > 0) == (level < graph.program.depth)


def test_only_what_a_batch_reaches_is_forgotten() -> None:
    schema = Schema.homogeneous(4, EdgeType(multi=True))
    model = net("sage", [4, 6, 3])
    graph = live(model, loaded(schema, 200, 400), hot_bytes=100_000)
    every = graph.store.alive(NODE)
    for _ in range(2):
        graph.query(NODE, every)
    assert graph.query(NODE, every).edges == 0
    graph.apply(Changes().insert_edges(EDGE, [190], [195]))
    kept = len(graph.hot[NODE])
    assert 0 < kept < len(every)
    assert error(graph, model) < 1e-12
    graph.refresh()
    assert len(graph.hot[NODE]) == 0


def test_no_bytes_keep_nothing() -> None:
    graph = live(net("gcn", [4, 6, 3]), loaded(Schema.homogeneous(4), 20, 40), hot_bytes=20)
    assert graph.hot == {}
