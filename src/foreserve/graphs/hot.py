"""Outputs of nodes that are asked for often, kept until something that they are made of changes.

The last layers are then not computed again for them. What a batch makes stale is found along the edges, as ids alone: a
64th of the numbers that the layer itself would read at width 128. A batch that reaches too far has all forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foreserve.graphs.adjacency import Ints
from foreserve.graphs.program import Aggregate, Value
from foreserve.graphs.store import Prepared
from foreserve.graphs.tables import Dirty, Tables

Flags = NDArray[np.bool_]

MOST_SHARE = 0.5
"""Of a layer's edges: a batch that reaches along more of them has everything forgotten."""

AGES = 4
"""Times as many nodes as there is place for are seen before it counts anew who is asked for again."""


class Found(NamedTuple):
    """Which of the nodes asked for are kept, and their rows."""

    hit: Flags
    rows: Tensor


class HotRows:
    """Rows of `value` for at most `most` nodes: those asked for a second time. Not for several threads at once."""

    def __init__(self, value: Value, most: int, dtype: torch.dtype, device: torch.device) -> None:
        self.value = value
        self.hits = 0
        self._rows = torch.empty((most, *value.shape), dtype=dtype, device=device)
        self._owner = np.full(most, -1, np.int64)
        self._used = np.zeros(most, bool)
        self._place = np.empty(0, np.int32)
        self._seen = np.empty(0, bool)
        self._first = 0
        self._hand = 0

    def __len__(self) -> int:
        return int((self._owner >= 0).sum())

    def _grow(self, ids: Ints) -> None:
        more = int(ids.max(initial=-1)) + 1 - len(self._place)
        if more > 0:
            more = max(more, len(self._place) // 4)
            self._place = np.append(self._place, np.full(more, -1, np.int32))
            self._seen = np.append(self._seen, np.zeros(more, bool))

    def find(self, ids: Ints) -> Found:
        """What is kept of these nodes."""
        self._grow(ids)
        places = self._place[ids]
        hit = places >= 0
        self._used[places[hit]] = True
        self.hits += int(hit.sum())
        return Found(hit, self._rows[torch.from_numpy(places[hit].astype(np.int64)).to(self._rows.device)])

    def offer(self, ids: Ints, rows: Tensor) -> None:
        """Rows that were computed just now, of nodes that are not kept, each once."""
        again = np.flatnonzero(self._seen[ids])
        self._first += len(ids) - len(again)
        self._seen[ids] = True
        if self._first > AGES * len(self._owner):
            self._seen[:] = False
            self._first = 0
        places = self._free(len(again))
        again = again[: len(places)]
        old = self._owner[places]
        self._place[old[old >= 0]] = -1
        self._owner[places] = ids[again]
        self._place[ids[again]] = places
        self._used[places] = False
        index = torch.from_numpy(places).to(rows.device)
        self._rows[index] = rows[torch.from_numpy(again).to(rows.device)].to(self._rows.dtype)

    def _free(self, count: int) -> Ints:
        """Places, by the clock: one that was asked for since the hand came by is passed over once."""
        most = len(self._owner)
        count = min(count, most)
        window = (self._hand + np.arange(min(most, 4 * count))) % most
        idle = window[~self._used[window]]
        if len(idle) < count:
            self._used[window] = False
            idle = window
        taken = idle[:count]
        if count:
            passed = window[: int(np.flatnonzero(window == taken[-1])[0]) + 1]
            self._used[passed] = False
            self._hand = int(taken[-1] + 1) % most
        return taken

    def forget(self, stale: Flags | None) -> None:
        """The rows of the nodes that are flagged; `None`: all."""
        if stale is None:
            places = np.flatnonzero(self._owner >= 0)
        else:
            owner = self._owner
            places = np.flatnonzero((owner >= 0) & (owner < len(stale)) & stale[np.clip(owner, 0, len(stale) - 1)])
        self._place[self._owner[places]] = -1
        self._owner[places] = -1
        self._used[places] = False


def hot_rows(tables: Tables, outputs: Mapping[str, int], most_bytes: int) -> dict[str, HotRows]:
    """By node type, for the outputs that are not kept anyway; `most_bytes` in all, shared evenly."""
    values = {type_: tables.split.program.values[each] for type_, each in outputs.items()}
    asked = {type_: value for type_, value in values.items() if value.id not in tables.split.kept}
    made = {}
    for type_, value in asked.items():
        row = math.prod(value.shape) * tables.store.dtype.itemsize + 9  # with its owner and its flag
        most = most_bytes // len(asked) // row
        if most:
            made[type_] = HotRows(value, most, tables.store.dtype, tables.device)
    return made


def stale(tables: Tables, prepared: Prepared, dirty: Dirty, outputs: Mapping[str, int]) -> dict[str, Flags | None]:
    """By node type, of which nodes the outputs may change by a batch; `None`: it reaches too far to tell."""
    program, store = tables.split.program, tables.store
    capacity = {name: nodes.capacity for name, nodes in store.nodes.items()}
    changed: dict[int, Flags] = {}
    for id_, new in dirty.items():
        flags = np.zeros(capacity[program.values[id_].type], bool)
        flags[new.ids] = True
        changed[id_] = flags
    for value in tables.split.asked:
        flags = np.zeros(capacity[value.type], bool)
        own = value.inputs
        if isinstance(value.op, Aggregate):
            own = value.op.targets
            edges, edit = store.edges[value.op.key], prepared.edges.get(value.op.key)
            senders = np.zeros(capacity[value.op.key[0]], bool)
            for each in value.op.sources:
                if each in changed:
                    senders |= changed[each]
            from_ = np.flatnonzero(senders)
            if int(edges.out.degree(from_).sum()) > MOST_SHARE * len(edges):
                return dict.fromkeys(outputs)
            flags[edges.out.columns["neighbour"][edges.out.entries(from_)[1]]] = True
            if edit is not None:
                flags[edit.removed["target"]] = True
                flags[edit.inserted["target"]] = True
        for each in own:
            if each in changed:
                flags |= changed[each]
        changed[value.id] = flags
    found: dict[str, Flags | None] = {}
    for type_, id_ in outputs.items():
        flags = changed.get(id_, np.zeros(capacity[type_], bool))
        if type_ in prepared.nodes:
            flags[prepared.nodes[type_].fresh] = True
            flags[prepared.nodes[type_].dead] = True
        found[type_] = flags
    return found
