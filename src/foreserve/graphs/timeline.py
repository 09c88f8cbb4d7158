"""Which nodes are there at each place of a batch: the store as it was, and the batch's own inserts and deletes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foreserve.graphs.adjacency import Ints
from foreserve.graphs.changes import Group


class Timeline(NamedTuple):
    """What a batch does to the nodes of one type, ordered by id and then by place.

    `row` is the place of the features among those of all groups that bring some, -1 for a delete.
    """

    id: Ints
    order: Ints
    row: Ints

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Timeline:
        """Of the groups that change nodes of one type."""
        if not groups:
            return cls(*(np.empty(0, np.int64) for _ in range(3)))
        ids = np.concatenate([group.columns["id"] for group in groups])
        order = np.concatenate([group.order for group in groups])
        rows, at = [], 0
        for group in groups:
            deletes = group.kind == "delete_nodes"
            rows.append(np.full(len(group), -1) if deletes else np.arange(at, at + len(group)))
            at += 0 if deletes else len(group)
        by = np.lexsort((order, ids))
        return cls(ids[by], order[by], np.concatenate(rows)[by])

    def alive(self, alive: NDArray[np.bool_], ids: Ints, order: Ints) -> NDArray[np.bool_]:
        """Whether each of `ids` is there just before the place `order`; `alive` tells it of the store, by id."""
        known = np.zeros(len(ids), bool)
        inside = (ids >= 0) & (ids < len(alive))
        known[inside] = alive[ids[inside]]
        if not len(self.id):
            return known
        # The last event of the id before the place. Ids have 31 bits, places no more.
        at = np.searchsorted((self.id << 32) | self.order, (ids << 32) | order) - 1
        mine = (at >= 0) & (self.id[at] == ids)
        return np.where(mine, self.row[at] >= 0, known)

    def last(self) -> tuple[Ints, Ints]:
        """Each id once, and the row that it has in the end, -1 where it is deleted."""
        ends = np.append(self.id[1:] != self.id[:-1], True) if len(self.id) else np.empty(0, bool)
        return self.id[ends], self.row[ends]

    def deleted(self) -> tuple[Ints, Ints]:
        """Each id that is deleted at some place, and the last such place."""
        deletes = self.row < 0
        ids, order = self.id[deletes], self.order[deletes]
        ends = np.append(ids[1:] != ids[:-1], True) if len(ids) else np.empty(0, bool)
        return ids[ends], order[ends]
