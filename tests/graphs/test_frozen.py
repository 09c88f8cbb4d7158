"""What is kept of a version is that version, whatever is committed before and while it is copied."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from foreserve.graphs import snapshot
from foreserve.graphs.frozen import Kept
from foreserve.graphs.schema import NODE, EdgeType, Schema
from tests.graphs.models import loaded, mixed_batch

SCHEMA = Schema.homogeneous(4, EdgeType(multi=True, weighted=True, attributes=2, expire_s=50.0))


def _alike(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_what_is_kept_is_the_version_that_it_was_made_of() -> None:
    """Through batches that grow, shrink and repack every list."""
    store, random = loaded(SCHEMA, 60, 300), np.random.default_rng(0)
    pools = 0
    for begin in range(12):
        want = snapshot.take(store, {}).arrays
        frozen = store.freeze()
        for step in range(1 + 4 * begin):
            prepared = store.prepare(mixed_batch(store, step, random), float(begin))
            pools += sum(edit.into.pool is not None for edit in prepared.edges.values())
            store.commit(prepared)
        assert _alike(frozen.copy(), want)
        store.thaw()
    assert pools, "no batch moved the lists to another pool"


def test_commits_go_on_while_it_is_copied() -> None:
    store, random = loaded(SCHEMA, 2_000, 20_000), np.random.default_rng(1)
    for _ in range(5):
        want = snapshot.take(store, {}).arrays
        frozen, made = store.freeze(), []
        copying = threading.Thread(target=lambda frozen=frozen, made=made: made.append(frozen.copy()))
        copying.start()
        version, step = store.version, 0
        while copying.is_alive() or step < 3:
            store.commit(store.prepare(mixed_batch(store, step, random), 0.0))
            step += 1
        copying.join()
        store.thaw()
        assert store.version > version
        assert _alike(made[0], want)


def test_only_the_first_of_several_changes_of_a_row_is_put_aside() -> None:
    for rows in (np.arange(12.0).reshape(6, 2), torch.arange(12.0).reshape(6, 2)):
        kept = Kept(rows)
        want = np.arange(12.0).reshape(6, 2)
        for value in (7.0, 8.0):
            kept.before(rows, np.array([1, 4, 4]))
            rows[[1, 4]] = value
        kept.before(rows * 0, np.array([0]))  # another array, as after growth
        assert np.array_equal(kept.copy(), want)
        assert sum(len(ids) for ids, _ in kept._aside) == 2


def test_two_versions_are_not_kept_at_once() -> None:
    store = loaded(SCHEMA, 10, 30)
    store.freeze()
    with pytest.raises(RuntimeError, match="another version"):
        store.freeze()
    store.thaw()
    store.freeze()
    assert store.alive(NODE).tolist() == list(range(10))
