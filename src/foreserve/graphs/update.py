"""The update phase: what a prepared batch changes in the kept tables, layer by layer, each change once.

A message that changed is pushed as a difference along the edges that were there; edges that go take the *new* message
away again, edges that come bring it (an edge that stays then carries old + (new - old)). A row is computed anew where
something that it is made of changed, and passed on only where the result did. Exact but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foreserve.graphs.adjacency import Ints, ordered, united
from foreserve.graphs.program import Aggregate, Feature, Topology, Value
from foreserve.graphs.reduces import summed
from foreserve.graphs.split import Stage
from foreserve.graphs.store import Prepared
from foreserve.graphs.tables import Dirty, Reader, Rows, Tables, topology_rows
from foreserve.graphs.whole import aggregated

LEAST_DENSE = 1024
"""Differences that are pushed in any case."""

BLOCK_ROWS = 2048
"""What a layer makes of so many rows stays in a cache."""

DENSE_SHARE = 0.25
"""Of a layer's edges: where more of them would carry a difference the layer is computed in full."""


@dataclass
class Effort:
    """What a batch took: differences pushed, rows computed, layers that were computed in full."""

    pushes: int = 0
    rows: int = 0
    dense: int = 0


@dataclass
class Update:
    """New rows by value, beside the tables until they are committed."""

    dirty: Dirty = field(default_factory=dict)
    effort: Effort = field(default_factory=Effort)
    stale: dict[str, NDArray[np.bool_] | None] = field(default_factory=dict)
    """By node type whose outputs may change (`None`: any), where some are kept."""


def propagate(tables: Tables, prepared: Prepared, dense_share: float = DENSE_SHARE) -> Update:
    """All that a prepared batch changes. Reads the tables and the graph; changes neither."""
    update = Update()
    for value in tables.split.program.values:
        if isinstance(value.op, Feature):
            new = _features(tables, value, prepared)
        elif isinstance(value.op, Topology) and value.id in tables.split.kept:
            new = topology_rows(tables, value, prepared)
        else:
            continue
        if new is not None:
            update.dirty[value.id] = new
    for stage in tables.split.stages:
        for value in stage.aggregates:
            _aggregate(tables, value, prepared, update, dense_share)
        _locals(tables, stage, prepared, update)
    return update


def _features(tables: Tables, value: Value, prepared: Prepared) -> Rows | None:
    net = prepared.nodes.get(value.type)
    if net is None or not len(net.ids):
        return None
    rows = torch.as_tensor(net.features, dtype=tables.store.dtype, device=tables.device)
    return _changed(net.ids, tables.rows(value, net.ids), rows)


def _changed(ids: Ints, old: Tensor, new: Tensor) -> Rows | None:
    """Only what differs; exactly, so that nothing is lost and a ReLU's zeros stop a wave."""
    if not len(ids):
        return None
    differs = np.flatnonzero((old != new).reshape(len(ids), -1).any(dim=1).cpu().numpy())
    if not len(differs):
        return None
    if len(differs) == len(ids):
        return Rows(ids, new)
    return Rows(ids[differs], new[torch.from_numpy(differs).to(new.device)])


def _aggregate(tables: Tables, value: Value, prepared: Prepared, update: Update, dense_share: float) -> None:
    op = value.op
    assert isinstance(op, Aggregate)
    edges = tables.store.edges[op.key]
    edit = prepared.edges.get(op.key)
    sent = [update.dirty[each].ids for each in op.sources if each in update.dirty]
    senders = united(sent, tables.store.nodes[op.key[0]].capacity)
    pushes = int(edges.out.degree(senders).sum())
    if not pushes and edit is None and not any(each in update.dirty for each in op.targets):
        return
    if pushes > max(LEAST_DENSE, dense_share * len(edges)):
        update.effort.dense += 1
        update.effort.rows += tables.store.nodes[value.type].count
        rows = aggregated(tables, value, update.dirty, edit)
        update.dirty[value.id] = Rows(np.arange(len(rows)), rows)
    elif op.reduce.additive:
        update.effort.pushes += pushes + (
            0 if edit is None else len(edit.removed["source"]) + len(edit.inserted["source"])
        )
        _push(tables, value, op, prepared, update)
    else:
        _recompute(tables, value, op, senders, prepared, update)


def _push(tables: Tables, value: Value, op: Aggregate, prepared: Prepared, update: Update) -> None:
    """Differences along the edges that were, then the edges that go and come with the new messages."""
    edges, edit = tables.store.edges[op.key], prepared.edges.get(op.key)
    message = tables.split.program.values[op.sources[0]]
    with_weight = getattr(op.reduce, "weighted", False)
    rows: list[Tensor] = []
    index: list[Ints] = []
    source: list[Ints] = []
    target: list[Ints] = []
    factor: list[np.ndarray] = []
    new = update.dirty.get(message.id)
    if new is not None:
        of, slots = edges.out.entries(new.ids)
        rows.append(new.rows - tables.rows(message, new.ids))
        index.append(of)
        source.append(new.ids[of])
        target.append(edges.out.columns["neighbour"][slots])
        factor.append(edges.out.columns["weight"][slots] if with_weight else np.ones(len(of)))
    if edit is not None:
        for columns, sign in ((edit.removed, -1.0), (edit.inserted, 1.0)):
            ids, place = np.unique(columns["source"], return_inverse=True)
            index.append(place + sum(len(each) for each in rows))
            rows.append(tables.rows(message, ids, update.dirty))
            source.append(columns["source"])
            target.append(columns["target"])
            factor.append(columns["weight"] * sign if with_weight else np.full(len(place), sign))
    at, to, times = np.concatenate(index), np.concatenate(target), np.concatenate(factor)
    if not op.reduce.loops:
        apart = np.concatenate(source) != to
        at, to, times = at[apart], to[apart], times[apart]
    if not len(to):
        return
    order, to = ordered(to)
    first = np.flatnonzero(np.append(True, to[1:] != to[:-1]))
    targets = to[first]
    plain = not with_weight and edit is None
    weight = None if plain else tables.index(times[order]).to(tables.store.dtype)
    given, index_, ends = torch.cat(rows), tables.index(at[order]), np.append(first, len(to))
    box = tables.scratch(value, len(targets))
    for start in range(0, len(targets), BLOCK_ROWS):
        part = slice(start, min(start + BLOCK_ROWS, len(targets)))
        low, high = int(ends[part.start]), int(ends[part.stop])
        offsets = tables.index(first[part] - low)
        more = summed(given, index_[low:high], offsets, None if weight is None else weight[low:high])
        torch.add(tables.rows(value, targets[part]), more, out=box[part])
    if edit is not None:
        # What has no edge left is nothing, not what rounding left of it.
        bare = edit.into.owners[edit.into.length == 0]
        box[tables.index(np.isin(targets, bare))] = 0.0
    update.dirty[value.id] = Rows(targets, box)


def _recompute(tables: Tables, value: Value, op: Aggregate, senders: Ints, prepared: Prepared, update: Update) -> None:
    """Anew for every target of which a source, an edge or an own row changed."""
    edges, edit = tables.store.edges[op.key], prepared.edges.get(op.key)
    _, slots = edges.out.entries(senders)
    touched = [edges.out.columns["neighbour"][slots].astype(np.int64)]
    if edit is not None:
        touched += [edit.removed["target"], edit.inserted["target"]]
    touched += [update.dirty[each].ids for each in op.targets if each in update.dirty]
    fresh = prepared.nodes.get(value.type)
    if op.targets and fresh is not None:
        touched.append(fresh.fresh)
    targets = np.unique(np.concatenate(touched))
    values = tables.split.program.values
    neighbour, gathered = tables.gathered(edges, targets, op.reduce.loops, edit)
    sources, place = np.unique(neighbour, return_inverse=True)
    rows = op.reduce(
        gathered._replace(source=tables.index(place)),
        [tables.rows(values[each], sources, update.dirty) for each in op.sources],
        [tables.rows(values[each], targets, update.dirty) for each in op.targets],
    )
    update.effort.pushes += len(neighbour)
    new = _changed(targets, tables.rows(value, targets), rows)
    if new is not None:
        update.dirty[value.id] = new


def _locals(tables: Tables, stage: Stage, prepared: Prepared, update: Update) -> None:
    """Rows of one layer anew, where something that they are made of changed or the node is new."""
    for type_, steps in stage.locals.items():
        touched = [update.dirty[leaf.id].ids for leaf in stage.leaves[type_] if leaf.id in update.dirty]
        if type_ in prepared.nodes:
            touched.append(prepared.nodes[type_].fresh)
        ids = united(touched, tables.store.nodes[type_].capacity)
        if not len(ids):
            continue
        readers = {leaf.id: Reader(tables, leaf, ids, update.dirty) for leaf in stage.leaves[type_]}
        made = [_Made(tables, value, len(ids)) for value in stage.outputs[type_]]
        for at in range(0, len(ids), BLOCK_ROWS):
            part = ids[at : at + BLOCK_ROWS]
            rows = {id_: reader(at, at + len(part)) for id_, reader in readers.items()}
            for value in steps:
                assert callable(value.op)
                rows[value.id] = value.op(rows)
            for each in made:
                each.add(part, rows[each.value.id])
        update.effort.rows += len(ids)
        for each in made:
            if each.count:
                update.dirty[each.value.id] = each.rows()


class _Made:
    """New rows of a value, block by block: those that differ from what is kept, and all where nobody reads them on."""

    def __init__(self, tables: Tables, value: Value, most: int) -> None:
        self.value = value
        self.count = 0
        self._tables = tables
        self._compares = tables.compares or value.id in tables.split.passed_on
        self._rows = tables.scratch(value, most)
        self._ids: list[Ints] = []

    def add(self, ids: Ints, rows: Tensor) -> None:
        if self._compares:
            new = _changed(ids, self._tables.rows(self.value, ids), rows)
            if new is None:
                return
            ids, rows = new
        self._rows[self.count : self.count + len(ids)] = rows
        self._ids.append(ids)
        self.count += len(ids)

    def rows(self) -> Rows:
        return Rows(np.concatenate(self._ids), self._rows[: self.count])
