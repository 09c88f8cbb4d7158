"""What a batch of changes amounts to: the last word on every node and edge, and nothing that is so already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from foreserve.graphs.adjacency import Columns, Ints, ranks
from foreserve.graphs.changes import Group
from foreserve.graphs.schema import EdgeKey, EdgeType, Schema
from foreserve.graphs.timeline import Timeline
from foreserve.graphs.validation import key_of

_NONE = np.empty(0, np.int64)


class NodeNet(NamedTuple):
    """`ids` get `features`, those of them that were not there are `fresh`; `dead` are taken out. All rise."""

    ids: Ints
    features: NDArray[Any]
    fresh: Ints
    dead: Ints


class EdgeNet(NamedTuple):
    """Edges to take out, `rank` 0 being the oldest between its two nodes, and edges to append, in order.

    `ignored` changes came to nothing.
    """

    source: Ints
    target: Ints
    rank: Ints
    inserted: Columns
    ignored: int


class Edges(Protocol):
    """What is asked of the edges that are there."""

    def count(self, source: Ints, target: Ints) -> Ints:
        """How many there are between these nodes."""

    def carried(self, source: Ints, target: Ints) -> Columns:
        """What the oldest edge between these nodes carries, which is there."""

    def touching(self, sources: Ints, targets: Ints) -> tuple[Ints, Ints, Ints]:
        """Source, target and rank of all edges out of `sources` and into `targets`."""


def node_net(timeline: Timeline, groups: list[Group], alive: NDArray[np.bool_]) -> NodeNet:
    """Of the groups that change nodes of one type."""
    ids, row = timeline.last()
    stays = row >= 0
    put = ids[stays]
    there = np.zeros(len(ids), bool)
    inside = ids < len(alive)
    there[inside] = alive[ids[inside]]
    rows = [group.columns["features"] for group in groups if group.kind != "delete_nodes"]
    features = np.concatenate(rows)[row[stays]] if rows else np.empty((0, 0))
    return NodeNet(put, features, put[~there[stays]], ids[~stays & there])


def edge_net(
    key: EdgeKey, edge: EdgeType, groups: list[Group], timelines: Mapping[str, Timeline], there: Edges, at: float
) -> EdgeNet:
    """Of the groups that change edges of type `key`. An edge without a weight has 1, without a time has `at`."""
    purged = [timelines[end].deleted() for end in (key[0], key[2])]
    source, target, rank = there.touching(purged[0][0], purged[1][0])
    asked = sum(len(group) for group in groups)
    if not asked:
        return EdgeNet(source, target, rank, _columns(groups, edge, at, _NONE), 0)
    # One line for each change, in order, without those that a later delete of an end undoes.
    order = np.concatenate([group.order for group in groups])
    by = np.argsort(order, kind="stable")
    all_ = _columns(groups, edge, at, by)
    insert = np.concatenate([np.full(len(group), group.kind == "insert_edges") for group in groups])[by]
    lost = [_at(*of, all_[end]) for of, end in zip(purged, ("source", "target"), strict=True)]
    stands = (order[by] > lost[0]) & (order[by] > lost[1])
    clean = ((lost[0] < 0) & (lost[1] < 0))[stands]
    insert = insert[stands]
    lines = {name: values[stands] for name, values in all_.items()}
    # By pair of nodes, each pair's changes in order.
    by = np.argsort((lines["source"] << 32) | lines["target"], kind="stable")
    insert, clean = insert[by], clean[by]
    lines = {name: values[by] for name, values in lines.items()}
    pair = (lines["source"] << 32) | lines["target"]
    first = np.flatnonzero(np.append(True, pair[1:] != pair[:-1])) if len(pair) else _NONE
    present = np.where(clean[first], there.count(lines["source"][first], lines["target"][first]), 0)
    removed, kept = (_queues if edge.multi else _last_word)(insert, first, present, lines, there)
    pairs = np.repeat(first, removed)
    ranked = np.arange(len(pairs)) - np.repeat(np.cumsum(removed) - removed, removed)
    kept = kept[np.argsort(by[kept], kind="stable")]
    return EdgeNet(
        np.concatenate((source, lines["source"][pairs])),
        np.concatenate((target, lines["target"][pairs])),
        np.concatenate((rank, ranked)),
        {name: values[kept] for name, values in lines.items()},
        asked - len(kept) - len(pairs),
    )


def _queues(insert: Any, first: Ints, present: Ints, lines: Columns, there: Edges) -> tuple[Ints, Ints]:
    """Several edges between two nodes: a delete takes the oldest. How many go of each pair, and the lines that stay."""
    size = np.diff(np.append(first, len(insert)))
    pair = np.repeat(np.arange(len(first)), size)
    lead = np.cumsum(np.where(insert, -1, 1))
    lead -= np.repeat(lead[first] - np.where(insert[first], -1, 1), size)  # deletes less inserts so far
    deepest = np.maximum.reduceat(lead, first) if len(first) else _NONE
    deletes = np.bincount(pair[~insert], minlength=len(first)) - np.maximum(0, deepest - present)
    removed = np.minimum(deletes, present)
    lines_of = np.flatnonzero(insert)
    return removed, lines_of[ranks(pair[lines_of]) >= (deletes - removed)[pair[lines_of]]]


def _last_word(insert: Any, first: Ints, present: Ints, lines: Columns, there: Edges) -> tuple[Ints, Ints]:
    """One edge between two nodes: the last change wins; one that only says what is so is none."""
    last = np.append(first[1:], len(insert)) - 1 if len(first) else _NONE
    wanted, had = insert[last], present > 0
    same = wanted & had
    if same.any():
        old = there.carried(lines["source"][last[same]], lines["target"][last[same]])
        alike = np.ones(len(old["neighbour"]), bool)
        for name, values in old.items():
            if name != "neighbour":
                new = lines[name][last[same]].astype(values.dtype, copy=False)
                alike &= (values == new).reshape(len(new), -1).all(axis=1)
        same[np.flatnonzero(same)[~alike]] = False
    return (had & ~same).astype(np.int64), last[wanted & ~same]


def _columns(groups: list[Group], edge: EdgeType, at: float, by: Ints) -> Columns:
    """The columns of all groups together, in the order `by`."""

    def column(name: str, missing: Any) -> NDArray[Any]:
        parts = [group.columns.get(name, np.full((len(group), *np.shape(missing)), missing)) for group in groups]
        return np.concatenate(parts)[by] if parts else np.empty((0, *np.shape(missing)))

    made: Columns = {name: column(name, 0).astype(np.int64, copy=False) for name in ("source", "target")}
    if edge.weighted:
        made["weight"] = column("weight", 1.0)
    if edge.attributes:
        made["attributes"] = column("attributes", np.zeros(edge.attributes))
    if edge.expire_s is not None:
        made["time"] = column("time", at)
    return made


def _at(ids: Ints, order: Ints, wanted: Ints) -> Ints:
    """The place at which each of `wanted` is deleted last, -1 where it is not."""
    if not len(ids):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[at] == wanted, order[at], -1)


def groups_of(groups: list[Group], schema: Schema, key: EdgeKey) -> list[Group]:
    """Those that insert or delete edges of type `key`."""
    return [each for each in groups if each.kind in ("insert_edges", "delete_edges") and key_of(each, schema) == key]
