"""The rows that are kept: of features, of what edges decide, and of the maintained values of a split program."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foreserve.graphs.adjacency import Ints, ordered
from foreserve.graphs.edges import EdgeEdit, EdgeStore
from foreserve.graphs.program import Feature, Gathered, Topology, Value
from foreserve.graphs.split import Split
from foreserve.graphs.store import GraphStore, Prepared


class Rows(NamedTuple):
    """New rows of a value: `rows[n]` is node `ids[n]`'s. The ids rise."""

    ids: Ints
    rows: Tensor


Dirty = dict[int, Rows]

MOST_SCRATCH = 2**26
"""Bytes of new rows of one value that are kept for the next batch to write to."""


class Reader:
    """The rows of `ids` block by block, with what is dirty in place of what is kept: what fits a cache is read once."""

    def __init__(self, tables: Tables, value: Value, ids: Ints, dirty: Dirty) -> None:
        self._tables, self._value, self._ids = tables, value, ids
        self._new: Tensor | None = None
        self._same = False
        self._hit = self._at = np.empty(0, np.int64)
        new = dirty.get(value.id)
        if new is None or not len(new.ids):
            return
        self._new = new.rows
        if new.ids is ids or (len(new.ids) == len(ids) and bool((new.ids == ids).all())):
            self._same = True
            return
        at = np.minimum(np.searchsorted(new.ids, ids), len(new.ids) - 1)
        self._hit = np.flatnonzero(new.ids[at] == ids)
        self._at = at[self._hit]

    def __call__(self, start: int, end: int) -> Tensor:
        """Those of `ids[start:end]`; not to be written to."""
        tables = self._tables
        if self._same:
            assert self._new is not None
            return self._new[start:end].to(tables.store.dtype)
        part = tables.index(self._ids[start:end])
        rows = tables.table(self._value).index_select(0, part).to(tables.store.dtype)
        if self._new is not None:
            first, last = np.searchsorted(self._hit, (start, end))
            if last > first:
                put = tables.index(self._hit[first:last] - start)
                rows[put] = self._new[tables.index(self._at[first:last])].to(rows.dtype)
        return rows


class Tables:
    """A table for each kept value. What edges decide is kept in float64, so that its sums do not drift."""

    def __init__(self, cut: Split, store: GraphStore) -> None:
        self.split = cut
        self.store = store
        self.device = store.device
        self._tables: dict[int, Tensor] = {}
        self._scratch: dict[int, Tensor] = {}
        self.compares = False
        """Whether what is dirty must differ from what is kept also where nothing kept is made of it."""
        for value in cut.program.values:
            if value.id in cut.kept and not isinstance(value.op, Feature):
                size = (store.nodes[value.type].capacity, *value.shape)
                self._tables[value.id] = torch.full(size, _initial(value), dtype=self._dtype(value), device=self.device)

    def _dtype(self, value: Value) -> torch.dtype:
        return torch.float64 if isinstance(value.op, Topology) else self.store.dtype

    @property
    def nbytes(self) -> int:
        """Of all tables; features are the store's."""
        return sum(table.nbytes for table in self._tables.values())

    def table(self, value: Value) -> Tensor:
        """All rows, in the table's own type."""
        return self.store.nodes[value.type].features if isinstance(value.op, Feature) else self._tables[value.id]

    def grow(self) -> None:
        """Make place for as many nodes as the store has place for."""
        for value in self.split.program.values:
            table = self._tables.get(value.id)
            capacity = self.store.nodes[value.type].capacity
            if table is not None and len(table) < capacity:
                larger = torch.full((capacity, *value.shape), _initial(value), dtype=table.dtype, device=self.device)
                larger[: len(table)] = table
                self._tables[value.id] = larger

    def rows(self, value: Value, ids: Ints, dirty: Dirty | None = None) -> Tensor:
        """The rows of these nodes, with what is `dirty` in place of what is kept."""
        new = None if dirty is None else dirty.get(value.id)
        if new is not None and (new.ids is ids or (len(new.ids) == len(ids) and bool((new.ids == ids).all()))):
            return new.rows.to(self.store.dtype)
        rows = self.table(value).index_select(0, self.index(ids)).to(self.store.dtype)
        if new is not None and len(new.ids):
            at = np.minimum(np.searchsorted(new.ids, ids), len(new.ids) - 1)
            hit = np.flatnonzero(new.ids[at] == ids)
            if len(hit):
                rows[self.index(hit)] = new.rows[self.index(at[hit])].to(rows.dtype)
        return rows

    def whole(self, value: Value, dirty: Dirty) -> Tensor:
        """The rows of all nodes, with what is `dirty`; a table itself where nothing of it is."""
        table = self.table(value)
        new = dirty.get(value.id)
        if new is None:
            return table.to(self.store.dtype)
        if len(new.ids) == len(table):
            return new.rows.to(self.store.dtype)
        made = table.to(self.store.dtype, copy=True)
        made[self.index(new.ids)] = new.rows.to(made.dtype)
        return made

    def commit(self, dirty: Dirty) -> None:
        """Write new rows; features are the store's to write."""
        for id_, new in dirty.items():
            if id_ in self._tables:
                put(self._tables[id_], new.ids, new.rows)

    def index(self, ids: NDArray[Any]) -> Tensor:
        """As torch takes it, on the device."""
        return torch.from_numpy(np.ascontiguousarray(ids)).to(self.device)

    def scratch(self, value: Value, count: int) -> Tensor:
        """Place for new rows of a value until the next batch: memory that was written before is faster than fresh."""
        kept = self._scratch.get(value.id)
        if kept is None or len(kept) < count:
            width = math.prod(value.shape) * self.store.dtype.itemsize
            most = min(count + count // 4, self.store.nodes[value.type].capacity, MOST_SCRATCH // max(1, width))
            kept = torch.empty((max(most, count), *value.shape), dtype=self.store.dtype, device=self.device)
            if kept.nbytes <= MOST_SCRATCH:
                self._scratch[value.id] = kept
        return kept[:count]

    # --- edges

    def gathered(
        self, edges: EdgeStore, targets: Ints, loops: bool, edit: EdgeEdit | None = None
    ) -> tuple[Ints, Gathered]:
        """The edges into `targets`, as they will be after `edit`: their sources, and an index that counts these."""
        if edit is None:
            of, slots = edges.into.entries(targets)
        else:
            of, slots = edges.into.entries_without(targets, edit.slots, edit.removed["target"])
        columns = {name: values[slots] for name, values in edges.into.columns.items() if name != "time"}
        if edit is not None and len(edit.inserted["source"]) and len(targets):
            at = np.minimum(np.searchsorted(targets, edit.inserted["target"]), len(targets) - 1)
            mine = targets[at] == edit.inserted["target"]
            order, of = ordered(np.append(of, at[mine]))
            new = {"neighbour": edit.inserted["source"]} | edit.inserted
            columns = {name: np.concatenate((c, new[name][mine].astype(c.dtype)))[order] for name, c in columns.items()}
        if not loops:
            keep = columns["neighbour"] != targets[of]
            of, columns = of[keep], {name: values[keep] for name, values in columns.items()}
        return columns["neighbour"].astype(np.int64), self.edges(of, columns, len(targets))

    def edges(self, of: Ints, columns: dict[str, NDArray[Any]], targets: int) -> Gathered:
        """In the form in which an aggregate takes them; `of` rises. The index of sources is that of all nodes."""
        sizes = np.bincount(of, minlength=targets)
        more = {name: self.index(columns[name]) if name in columns else None for name in ("weight", "attributes")}
        return Gathered(
            source=self.index(columns["neighbour"].astype(np.int64)),
            segment=self.index(of),
            offsets=self.index(np.cumsum(sizes) - sizes),
            weight=more["weight"],
            attributes=more["attributes"],
        )


def put(table: Tensor, ids: Ints, rows: Tensor) -> None:
    """Write rows of a table. On the CPU numpy does it, in half the time."""
    rows = rows.to(table.dtype)
    if table.device.type == "cpu":
        table.numpy()[ids] = rows.numpy()
    else:
        table.index_copy_(0, torch.from_numpy(ids).to(table.device), rows)


def _initial(value: Value) -> float:
    return value.op.fill if isinstance(value.op, Topology) and value.op.what == "loop" else 0.0


def topology_rows(tables: Tables, value: Value, prepared: Prepared) -> Rows | None:
    """The new numbers that a prepared batch gives the targets of its edges; None where all stay."""
    op = value.op
    assert isinstance(op, Topology)
    edit = prepared.edges.get(op.key)
    if edit is None:
        return None
    source = np.concatenate((edit.removed["source"], edit.inserted["source"]))
    target = np.concatenate((edit.removed["target"], edit.inserted["target"]))
    if op.what == "loop":
        ids = np.unique(target[source == target])
        new = _last_loops(tables, op, ids, edit)
    else:
        terms = np.ones(len(source))
        if op.what == "weight":
            terms = np.concatenate((edit.removed["weight"], edit.inserted["weight"])).astype(np.float64)
        terms[: len(edit.removed["source"])] *= -1
        if not op.loops:
            terms, target = terms[source != target], target[source != target]
        ids, place = np.unique(target, return_inverse=True)
        new = tables.table(value)[tables.index(ids), 0].cpu().numpy() + np.bincount(place, terms, minlength=len(ids))
        new[edit.into.length[np.searchsorted(edit.into.owners, ids)] == 0] = 0.0
    old = tables.table(value)[tables.index(ids), 0].cpu().numpy()
    changed = new != old
    if not changed.any():
        return None
    return Rows(ids[changed], torch.from_numpy(new[changed]).unsqueeze(1).to(tables.device))


def _last_loops(tables: Tables, op: Topology, ids: Ints, edit: EdgeEdit) -> NDArray[np.float64]:
    source, edges = tables.gathered(tables.store.edges[op.key], ids, True, edit)
    of = edges.segment.cpu().numpy()
    new = np.full(len(ids), op.fill)
    mine = source == ids[of]
    assert edges.weight is not None
    new[of[mine]] = edges.weight.cpu().numpy()[mine]  # of several the last stays
    return new
