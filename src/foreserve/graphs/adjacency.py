"""Edges of one type seen from one end: for each owner the list of its neighbours, in the order of their insertion.

The lists lie in one pool of arrays, each with some room behind it. A list that outgrows its room moves to the pool's
end; what it leaves behind is won back when the pool is full. All work is on whole arrays.

An edit is *prepared* first, which reads and changes nothing that a reader sees, and then *committed*, which writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Columns = dict[str, NDArray[Any]]

_CHUNK = 2**20
_LEAST_ROOM = 4


def spans(start: Ints, length: Ints) -> tuple[Ints, Ints]:
    """Of ranges that begin at `start`: for each of their elements the number of its range, and the element."""
    owner = np.repeat(np.arange(len(start)), length)
    ends = np.cumsum(length)
    return owner, np.arange(len(owner)) + np.repeat(start - (ends - length), length)


def ordered(key: NDArray[Any]) -> tuple[Ints, Ints]:
    """The places of `key` in rising order, equal ones as they come, and the key in that order. Keys have 31 bits.

    Sorting both as one number is several times as fast as a stable argsort.
    """
    both = np.sort((key.astype(np.int64) << 32) | np.arange(len(key)))
    return both & 0xFFFFFFFF, both >> 32


def united(parts: Sequence[Ints], size: int) -> Ints:
    """All ids, below `size`, that are in one of `parts`, each once. They rise, as those of each part do."""
    parts = [part for part in parts if len(part)]
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return np.empty(0, np.int64)
    if 64 * sum(len(part) for part in parts) < size:
        return np.unique(np.concatenate(parts))
    flags = np.zeros(size, bool)
    for part in parts:
        flags[part] = True
    return np.flatnonzero(flags)


def ranks(key: NDArray[Any]) -> Ints:
    """How many equal elements come before each element of `key`."""
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if len(key) else np.empty(0, int)
    rank = np.empty(len(key), np.int64)
    rank[order] = np.arange(len(key)) - np.repeat(first, np.diff(np.append(first, len(key))))
    return rank


def _empty(size: int, like: NDArray[Any]) -> NDArray[Any]:
    return np.empty((size, *like.shape[1:]), like.dtype)


class Edit(NamedTuple):
    """What a commit writes: `columns` at `slots`, then the lists of `owners` are where `start`, `length`, `room` say.

    `pool` replaces the arrays themselves when they were full.
    """

    owners: Ints
    start: Ints
    length: Ints
    room: Ints
    slots: Ints
    columns: Columns
    tail: int
    garbage: int
    edges: int
    pool: Adjacency | None


class Adjacency:
    """The lists of `owners` nodes. Beside its `neighbour` an edge has columns of the types and widths of `like`."""

    def __init__(self, owners: int = 0, like: Columns | None = None) -> None:
        self.start = np.zeros(owners, np.int64)
        self.length = np.zeros(owners, np.int32)
        self.room = np.zeros(owners, np.int32)
        self.columns: Columns = {"neighbour": np.empty(0, np.int32)}
        self.columns |= {name: _empty(0, values) for name, values in (like or {}).items() if name != "neighbour"}
        self.tail = 0
        self.garbage = 0
        self.edges = 0

    @classmethod
    def of(cls, owners: int, owner: NDArray[Any], columns: Columns) -> Adjacency:
        """Of edges in the order of their insertion."""
        made = cls(owners, columns)
        count = np.bincount(owner, minlength=owners)
        made._lay_out(count)
        order = np.argsort(owner, kind="stable")
        _, slots = spans(made.start, count)
        for name, values in columns.items():
            made.columns[name][slots] = values[order]
        return made

    def _lay_out(self, length: Ints) -> None:
        """Lists of these lengths one after the other, none of their elements filled in."""
        room = length + length // 8 + (length > 0)
        ends = np.cumsum(room)
        self.start = ends - room
        self.length = length.astype(np.int32)
        self.room = room.astype(np.int32)
        self.tail = int(ends[-1]) if len(ends) else 0
        self.edges = int(length.sum())
        self.garbage = 0
        size = self.tail + self.tail // 16
        self.columns = {name: _empty(size, values) for name, values in self.columns.items()}

    @property
    def nbytes(self) -> int:
        arrays: list[NDArray[Any]] = [self.start, self.length, self.room, *self.columns.values()]
        return sum(array.nbytes for array in arrays)

    def grow(self, owners: int) -> None:
        """Make place for ids below `owners`; new lists are empty."""
        more = owners - len(self.start)
        if more > 0:
            more = max(more, len(self.start) // 8)
            self.start = np.concatenate((self.start, np.zeros(more, np.int64)))
            self.length = np.concatenate((self.length, np.zeros(more, np.int32)))
            self.room = np.concatenate((self.room, np.zeros(more, np.int32)))

    # --- read

    def degree(self, owners: Ints) -> Ints:
        """The lengths of their lists."""
        return self.length[owners].astype(np.int64)

    def entries(self, owners: Ints) -> tuple[Ints, Ints]:
        """For each edge of `owners`, list by list: the position of its owner in `owners`, and its slot."""
        return spans(self.start[owners], self.degree(owners))

    def entries_without(self, owners: Ints, removed: Ints, removed_owner: Ints) -> tuple[Ints, Ints]:
        """As `entries` of `owners`, which rise, without the slots `removed` in the lists of `removed_owner`."""
        of, slots = self.entries(owners)
        if not len(removed) or not len(owners):
            return of, slots
        at = np.minimum(np.searchsorted(owners, removed_owner), len(owners) - 1)
        mine = owners[at] == removed_owner
        first = np.cumsum(self.degree(owners)) - self.degree(owners)
        kept = np.ones(len(slots), bool)
        kept[first[at[mine]] + removed[mine] - self.start[removed_owner[mine]]] = False
        return of[kept], slots[kept]

    def blocks(self, most: int = _CHUNK) -> Iterator[tuple[Ints, Ints, Ints]]:
        """All edges, in blocks of about `most`: the owners of a block, the lengths of their lists, the slots."""
        ends = np.cumsum(self.length, dtype=np.int64)
        at = 0
        while at < len(ends):
            before = int(ends[at - 1]) if at else 0
            to = max(at + 1, int(np.searchsorted(ends, before + most, side="right")))
            owners = np.arange(at, min(to, len(ends)))
            length = self.degree(owners)
            yield owners, length, spans(self.start[owners], length)[1]
            at = to

    def find(self, owner: Ints, neighbour: Ints, rank: Ints) -> Ints:
        """The slots of these edges, -1 where there is none. `rank` 0 is the oldest of several between two nodes."""
        which, place, slots, sought = self._hits(owner, neighbour)
        order = np.argsort(place, kind="stable")
        place, slots = place[order], slots[order]
        first = np.searchsorted(place, np.arange(sought + 1))
        at = first[which] + rank
        there = at < first[which + 1]
        return np.where(there, slots[np.minimum(at, max(0, len(slots) - 1))] if len(slots) else -1, -1)

    def count(self, owner: Ints, neighbour: Ints) -> Ints:
        """How many edges there are between these two nodes."""
        which, place, _, sought = self._hits(owner, neighbour)
        return np.bincount(place, minlength=sought)[which]

    def _hits(self, owner: Ints, neighbour: Ints) -> tuple[Ints, Ints, Ints, int]:
        """Where the lists of `owner` have the `neighbour` sought in each: the number of each pair among the distinct
        ones; of what was found the number of its pair and its slot; and how many distinct pairs there are."""
        owners, position = np.unique(owner, return_inverse=True)
        wanted = (position << 32) | neighbour
        sought, which = np.unique(wanted, return_inverse=True)
        of, slots = self.entries(owners)
        found = self.columns["neighbour"][slots]
        # Most entries are nobody that is sought anywhere: a look into a table of flags spares the search for them.
        flags = np.zeros(int(max(found.max(initial=0), neighbour.max(initial=0))) + 1, bool)
        flags[neighbour] = True
        likely = np.flatnonzero(flags[found])
        key = (of[likely] << 32) | found[likely]
        place = np.minimum(np.searchsorted(sought, key), max(0, len(sought) - 1))
        hit = sought[place] == key if len(sought) else np.zeros(0, bool)
        return which, place[hit], slots[likely[hit]], len(sought)

    # --- write

    def prepare(self, removed: Ints, removed_owner: Ints, owner: Ints, columns: Columns) -> Edit:
        """The edit that takes out the edges at the slots `removed` and then appends edges with these columns.

        What is appended to one list keeps its order. Owners beyond the present ones must have been given place before.
        """
        order, owner = ordered(owner)
        owners = np.union1d(removed_owner, owner)
        old = self.degree(owners)
        gone = np.bincount(np.searchsorted(owners, removed_owner), minlength=len(owners))
        place = np.searchsorted(owners, owner)
        length = old - gone + np.bincount(place, minlength=len(owners))
        room, moves = self._rooms(owners, length)
        at = self
        if self.tail + int(room[moves].sum()) > len(self.columns["neighbour"]):
            at = self._larger(owners, length)
            removed = removed - self.start[removed_owner] + at.start[removed_owner]
            room, moves = at._rooms(owners, length)
        start = at.start[owners]
        ends = np.cumsum(room[moves])
        start[moves] = at.tail + ends - room[moves]
        # Lists that lose edges or move are written anew; to the others only is appended.
        anew = np.flatnonzero(moves | (gone > 0))
        of, slots = at.entries_without(owners[anew], removed, removed_owner)
        left = old - gone
        # `of` rises, so an element's place in its list is its place among all, less what came before the list.
        before = np.cumsum(left[anew]) - left[anew]
        to = start[anew][of] + np.arange(len(of)) - before[of]
        appended = start[place] + left[place] + (np.arange(len(owner)) - np.searchsorted(owner, owner))
        written = {
            name: np.concatenate((values[slots], columns[name][order].astype(values.dtype, copy=False)))
            for name, values in at.columns.items()
        }
        return Edit(
            owners=owners,
            start=start,
            length=length,
            room=room,
            slots=np.concatenate((to, appended)),
            columns=written,
            tail=at.tail + int(room[moves].sum()),
            garbage=at.garbage + int(at.room[owners[moves]].sum()),
            edges=self.edges - len(removed) + len(owner),
            pool=None if at is self else at,
        )

    def commit(self, edit: Edit) -> None:
        """Write a prepared edit. Nothing may have been committed since it was prepared."""
        if edit.pool is not None:
            self.columns, self.start = edit.pool.columns, edit.pool.start
            self.length, self.room = edit.pool.length, edit.pool.room
        for name, values in edit.columns.items():
            self.columns[name][edit.slots] = values
        self.start[edit.owners] = edit.start
        self.length[edit.owners] = edit.length
        self.room[edit.owners] = edit.room
        self.tail, self.garbage, self.edges = edit.tail, edit.garbage, edit.edges

    def _rooms(self, owners: Ints, length: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """The room that lists of these lengths get, and which of them outgrow the one they have."""
        room = self.room[owners].astype(np.int64)
        moves = length > room
        return np.where(moves, np.maximum(_LEAST_ROOM, length + length // 2), room), moves

    def _larger(self, owners: Ints, length: Ints) -> Adjacency:
        """A copy in which there is place for lists of these lengths: packed anew if a quarter of it lay waste."""
        made = Adjacency(0, self.columns)
        packs = 4 * self.garbage > self.tail
        if packs:
            made._lay_out(self.length.astype(np.int64))
            for block, count, slots in self.blocks():
                _, to = spans(made.start[block], count)
                for name, values in self.columns.items():
                    made.columns[name][to] = values[slots]
        else:
            made.start, made.length, made.room = self.start.copy(), self.length.copy(), self.room.copy()
            made.tail, made.garbage = self.tail, self.garbage
        room, moves = made._rooms(owners, length)
        size = made.tail + int(room[moves].sum())
        for name, values in (made.columns if packs else self.columns).items():
            larger = _empty(size + size // 4, values)
            larger[: made.tail] = values[: made.tail]
            made.columns[name] = larger
        return made
