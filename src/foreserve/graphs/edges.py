"""The edges of one type, seen from both ends, and when they expire."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foreserve.graphs.adjacency import Adjacency, Columns, Edit, Ints, ranks
from foreserve.graphs.net import EdgeNet
from foreserve.graphs.schema import EdgeType

NEVER = np.inf


class EdgeEdit(NamedTuple):
    """A prepared change of the edges of one type, and what it takes out and puts in.

    `removed` and `inserted` have the columns `source`, `target` and, where edges have one, `weight`; `slots` say where
    in the incoming lists each of those is that are taken out.
    """

    out: Edit
    into: Edit
    removed: Columns
    inserted: Columns
    slots: Ints
    oldest: tuple[Ints, NDArray[np.float64]] | None
    ignored: int


class EdgeStore:
    """Edges of type `edge` between nodes of two types.

    Attributes and times are kept at the target's end alone, weights at both. Copies of an edge stand in the same order
    in both lists, so that the rank among them names one.
    """

    def __init__(self, edge: EdgeType, dtype: Any = np.float32) -> None:
        self.edge = edge
        weight = {"weight": np.empty(0, dtype)} if edge.weighted else {}
        more: Columns = {"attributes": np.empty((0, edge.attributes), dtype)} if edge.attributes else {}
        if edge.expire_s is not None:
            more["time"] = np.empty(0, np.float64)
        self.out = Adjacency(0, weight)
        self.into = Adjacency(0, weight | more)
        self.oldest = np.empty(0, np.float64)
        """For each target a time before which none of its edges is."""

    def __len__(self) -> int:
        return self.into.edges

    @property
    def nbytes(self) -> int:
        return self.out.nbytes + self.into.nbytes + self.oldest.nbytes

    def load(self, sources: int, targets: int, columns: Columns) -> None:
        """Take these edges, in order, in place of what is there; ids are below `sources` and `targets`."""
        source, target = columns["source"].astype(np.int32), columns["target"].astype(np.int32)
        more = {name: columns[name].astype(old.dtype, copy=False) for name, old in self._carried().items()}
        weight = {name: values for name, values in more.items() if name == "weight"}
        self.out = Adjacency.of(sources, source, {"neighbour": target, **weight})
        self.into = Adjacency.of(targets, target, {"neighbour": source, **more})
        if self.edge.expire_s is not None:
            self.oldest = np.full(targets, NEVER)
            np.minimum.at(self.oldest, target, more["time"])

    def grow(self, sources: int, targets: int) -> None:
        """Make place for ids below these."""
        self.out.grow(sources)
        self.into.grow(targets)
        if self.edge.expire_s is not None and targets > len(self.oldest):
            self.oldest = np.append(self.oldest, np.full(targets - len(self.oldest), NEVER))

    def _carried(self) -> Columns:
        return {name: values for name, values in self.into.columns.items() if name != "neighbour"}

    # --- what a net change asks; place for all its ids has been made

    def count(self, source: Ints, target: Ints) -> Ints:
        """How many edges there are between these nodes."""
        by_source = self.out.degree(source) <= self.into.degree(target)  # the shorter list is searched
        counted = np.empty(len(source), np.int64)
        counted[by_source] = self.out.count(source[by_source], target[by_source])
        counted[~by_source] = self.into.count(target[~by_source], source[~by_source])
        return counted

    def carried(self, source: Ints, target: Ints) -> Columns:
        """What the oldest edge between these nodes carries, which is there."""
        slots = self.into.find(target, source, np.zeros(len(source), np.int64))
        return {name: values[slots] for name, values in self.into.columns.items()}

    def touching(self, sources: Ints, targets: Ints) -> tuple[Ints, Ints, Ints]:
        """Source, target and rank of all edges out of `sources` and into `targets`."""
        of, slots = self.out.entries(sources)
        source, target = sources[of], self.out.columns["neighbour"][slots].astype(np.int64)
        rank = ranks((source << 32) | target)
        of, slots = self.into.entries(targets)
        to, come = targets[of], self.into.columns["neighbour"][slots].astype(np.int64)
        order = ranks((come << 32) | to)
        new = ~np.isin(come, sources)
        return np.append(source, come[new]), np.append(target, to[new]), np.append(rank, order[new])

    def expired(self, until: float) -> EdgeNet:
        """The removal of all edges whose time is at most `until`."""
        targets = np.flatnonzero(self.oldest <= until)
        of, slots = self.into.entries(targets)
        source = self.into.columns["neighbour"][slots].astype(np.int64)
        rank = ranks((targets[of] << 32) | source)
        old = self.into.columns["time"][slots] <= until
        return EdgeNet(source[old], targets[of][old], rank[old], self._none(), 0)

    def _none(self) -> Columns:
        none = {name: values[:0] for name, values in self._carried().items()}
        return {"source": np.empty(0, np.int64), "target": np.empty(0, np.int64)} | none

    # --- change

    def prepare(self, net: EdgeNet) -> EdgeEdit:
        """The edit that does `net`. Place for all ids of it must have been made. Changes nothing."""
        # As they will be kept: what is made of them must be what is taken out again with them.
        columns = self.into.columns
        inserted = {
            name: values.astype(columns[name].dtype, copy=False) if name in columns else values
            for name, values in net.inserted.items()
        }
        out_slots = self.out.find(net.source, net.target, net.rank)
        in_slots = self.into.find(net.target, net.source, net.rank)
        removed: Columns = {"source": net.source, "target": net.target}
        if self.edge.weighted:
            removed["weight"] = self.into.columns["weight"][in_slots]
        source, target = inserted["source"], inserted["target"]
        carried = {name: inserted[name] for name in self._carried()}
        weight = {name: values for name, values in carried.items() if name == "weight"}
        return EdgeEdit(
            out=self.out.prepare(out_slots, net.source, source, {"neighbour": target, **weight}),
            into=self.into.prepare(in_slots, net.target, target, {"neighbour": source, **carried}),
            removed=removed,
            inserted=inserted,
            slots=in_slots,
            oldest=self._oldest(net, in_slots),
            ignored=net.ignored,
        )

    def _oldest(self, net: EdgeNet, removed: Ints) -> tuple[Ints, NDArray[np.float64]] | None:
        """The bound anew: of targets that get edges, and of those that lose one that was not above it."""
        if self.edge.expire_s is None:
            return None
        time = self.into.columns["time"]
        stale = np.unique(net.target[time[removed] <= self.oldest[net.target]])
        targets = np.union1d(stale, net.inserted["target"])
        bound = self.oldest[targets].copy()
        of, slots = self.into.entries_without(stale, removed, net.target)
        fresh = np.full(len(stale), NEVER)
        np.minimum.at(fresh, of, time[slots])
        bound[np.searchsorted(targets, stale)] = fresh
        np.minimum.at(bound, np.searchsorted(targets, net.inserted["target"]), net.inserted["time"])
        return targets, bound

    def commit(self, edit: EdgeEdit) -> None:
        """Write what was prepared."""
        self.out.commit(edit.out)
        self.into.commit(edit.into)
        if edit.oldest is not None:
            self.oldest[edit.oldest[0]] = edit.oldest[1]

    def columns(self) -> Columns:
        """All edges: `source`, `target` and what they carry, target by target."""
        parts: list[Columns] = []
        for owners, length, slots in self.into.blocks():
            part = {name: values[slots] for name, values in self.into.columns.items()}
            parts.append(
                {"source": part.pop("neighbour"), "target": np.repeat(owners.astype(np.int32), length), **part}
            )
        if not parts:
            return self._none()
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
