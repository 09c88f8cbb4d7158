"""A model over a graph that changes: one writer applies batches, readers ask, each sees one version."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from foreserve.errors import BadRequest
from foreserve.graphs.adjacency import Ints
from foreserve.graphs.changes import Changes
from foreserve.graphs.hot import hot_rows, stale
from foreserve.graphs.inference import infer
from foreserve.graphs.program import Program
from foreserve.graphs.split import split
from foreserve.graphs.store import GraphStore, Prepared, known
from foreserve.graphs.tables import Tables
from foreserve.graphs.update import DENSE_SHARE, Effort, Update, propagate
from foreserve.graphs.whole import compute


class Applied(NamedTuple):
    """A batch that is visible as `version`. `ignored` of its changes came to nothing."""

    version: int
    ignored: int
    effort: Effort


class Answer(NamedTuple):
    """A row for each node that was asked for, all of one version; `edges` were read for them."""

    version: int
    rows: Tensor
    edges: int


class LiveGraph:
    """`program` over `store`, maintained up to layer `level` (of `program.depth`; by default all but the last).

    `apply` is for one thread at a time, `query` for any. A query waits for a commit at most, never for an update.
    Outputs of nodes that are asked for again are kept in at most `hot_bytes` until they may have changed.
    """

    def __init__(
        self,
        program: Program,
        store: GraphStore,
        level: int | None = None,
        dense_share: float = DENSE_SHARE,
        hot_bytes: int = 0,
    ) -> None:
        self.program = program
        self.store = store
        self.level = program.depth - 1 if level is None else level
        if not 0 <= self.level <= program.depth:
            raise ValueError(f"`level` is {level}; the model has {program.depth} layers")
        self._dense_share = dense_share
        self._lock = threading.Lock()
        self.tables = Tables(split(program, self.level), store)
        self.hot = hot_rows(self.tables, program.outputs, hot_bytes)
        # What is written unchanged would be forgotten for nothing.
        self.tables.compares = bool(self.hot)
        self.refresh()

    @property
    def outputs(self) -> tuple[str, ...]:
        """The node types that the model returns something for."""
        return tuple(self.program.outputs)

    def prepare(self, changes: Changes, at: float = 0.0) -> tuple[Prepared, Update]:
        """All that `changes` do, computed beside the version that is read. Raises BadRequest where they do not fit."""
        prepared = self.store.prepare(changes, at)
        return prepared, self.propagate(prepared)

    def propagate(self, prepared: Prepared) -> Update:
        """What a prepared batch does to the tables."""
        self.tables.grow()
        with torch.no_grad():
            update = propagate(self.tables, prepared, self._dense_share)
        if self.hot:
            update.stale = stale(self.tables, prepared, update.dirty, self.program.outputs)
        return update

    def commit(self, prepared: Prepared, update: Update) -> Applied:
        """Make it the next version."""
        with self._lock:
            for type_, rows in self.hot.items():
                rows.forget(update.stale[type_])
            self.store.commit(prepared)
            self.tables.commit(update.dirty)
        return Applied(self.store.version, prepared.ignored, update.effort)

    def apply(self, changes: Changes, at: float = 0.0) -> Applied:
        """Both. A batch that does not fit changes nothing."""
        return self.commit(*self.prepare(changes, at))

    def query(self, type_: str, ids: ArrayLike) -> Answer:
        """The model's output for these nodes, in their order. Raises BadRequest for a node that is not there."""
        asked = np.asarray(ids, dtype=np.int64)
        if type_ not in self.program.outputs:
            valid = ", ".join(self.program.outputs)
            raise BadRequest(f"the model returns nothing for nodes of type {type_!r}; valid: {valid}")
        distinct, place = np.unique(asked, return_inverse=True)
        with self._lock, torch.no_grad():
            self._check(type_, asked)
            rows, edges = self._rows(type_, distinct)
            version = self.store.version
        return Answer(version, rows[self.tables.index(place)], edges)

    def _rows(self, type_: str, ids: Ints) -> tuple[Tensor, int]:
        output, hot = self.program.outputs[type_], self.hot.get(type_)
        if hot is None:
            return infer(self.tables, output, ids)
        found = hot.find(ids)
        if found.hit.all():
            return found.rows, 0
        missed = ids[~found.hit]
        made = infer(self.tables, output, missed)
        hot.offer(missed, made.rows)
        rows = made.rows.new_empty((len(ids), *made.rows.shape[1:]))
        rows[self.tables.index(np.flatnonzero(found.hit))] = found.rows
        rows[self.tables.index(np.flatnonzero(~found.hit))] = made.rows
        return rows, made.edges

    def _check(self, type_: str, asked: Ints) -> None:
        there = known(self.store.nodes[type_].alive, asked)
        if not there.all():
            at = int(np.flatnonzero(~there)[0])
            raise BadRequest(f"nodes[{at}]: there is no node {asked[at]} of type {type_!r}")

    def refresh(self) -> None:
        """Compute all tables anew, of the features and the edges. What readers see stays right meanwhile."""
        with torch.no_grad():
            self.tables.grow()
            dirty = compute(self.tables)
        with self._lock:
            for rows in self.hot.values():
                rows.forget(None)
            self.tables.commit(dirty)

    def drift(self) -> float:
        """The largest difference between a kept row and the same computed anew.

        Relative to the value's largest, or the features', whichever is more: what is left of a sum whose last part has
        gone is as small as the parts were, not as nothing.
        """
        with torch.no_grad():
            exact = compute(self.tables)
        nodes = self.store.nodes.values()
        least = max((float(each.features.abs().max()) for each in nodes if each.features.numel()), default=0.0)
        worst = 0.0
        for value in self.program.values:
            if value.id in exact:
                alive: NDArray[np.int64] = self.store.alive(value.type)
                old = self.tables.rows(value, alive).double()
                new = exact[value.id].rows[self.tables.index(alive)].double()
                if len(alive):
                    scale = max(float(new.abs().max()), least)
                    worst = max(worst, float((old - new).abs().max()) / (scale or 1.0))
        return worst
