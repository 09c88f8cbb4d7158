"""Batches that are still being put together, and which of them a request joins.

Joining compares a bounded number of batches, however many wait: those whose lengths are within about a factor of two,
by cells of the logarithms of both lengths, and the newest few.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice

import msgspec

from foreserve.core import Work
from foreserve.foresight.batch_time import BatchShape
from foreserve.foresight.wma import Shape, longest, memory_tokens, waste

OPEN_IN_CELL = 4
"""Open batches compared in one cell, the newest."""

OPEN_ANYWHERE = 16
"""Open batches compared wherever they are, the newest, when none near by took the request."""


class Member(msgspec.Struct, frozen=True):
    """A waiting request: its lengths as waste counts them, and the answer's as memory does; its tenant's account."""

    work: Work
    shape: Shape
    most: int
    account: str = "default"


class Batch:
    """Requests that will run together. It changes only through these methods."""

    def __init__(self, members: Iterable[Member] = ()) -> None:
        self.members: dict[str, Member] = {}
        self._measure(members)

    def _measure(self, members: Iterable[Member]) -> None:
        self.longest = Shape(0, 1)
        self.most = 1
        self.oldest = float("inf")
        self.utility = 0.0
        self.accounts: set[str] = set()
        self.seconds: float | None = None
        """Its estimated time, until it changes."""
        self._front: list[Shape] = []
        for member in members:
            self.add(member)

    @property
    def shape(self) -> BatchShape:
        """What its time is estimated from."""
        return BatchShape(len(self.members), self.longest)

    @property
    def memory(self) -> int:
        """Tokens of KV cache at its end, padding included."""
        return memory_tokens(len(self.members), Shape(self.longest.input, self.most))

    @property
    def waste(self) -> int:
        """Of the request that it serves worst (see `foresight.wma`)."""
        return max((waste(shape, self.longest) for shape in self._front), default=0)

    def waste_with(self, shape: Shape) -> int:
        """Its waste if such a request joined."""
        whole = longest((self.longest, shape))
        return max(waste(shape, whole), max((waste(other, whole) for other in self._front), default=0))

    def memory_with(self, member: Member) -> int:
        """Its memory if this request joined."""
        whole = Shape(max(self.longest.input, member.shape.input), max(self.most, member.most))
        return memory_tokens(len(self.members) + 1, whole)

    def add(self, member: Member) -> None:
        """Take it in, whatever it wastes."""
        self.members[member.work.id] = member
        shape = member.shape
        self.longest = longest((self.longest, shape))
        self.most = max(self.most, member.most)
        self.oldest = min(self.oldest, member.work.arrival)
        self.utility += member.work.utility
        self.accounts.add(member.account)
        self.seconds = None
        # Waste falls in both lengths: the worst-served is always one that no other is shorter than in both.
        if not any(other.input <= shape.input and other.output <= shape.output for other in self._front):
            self._front = [s for s in self._front if not (shape.input <= s.input and shape.output <= s.output)]
            self._front.append(shape)

    def remove(self, request_ids: Iterable[str]) -> list[Member]:
        """Take these out; its lengths are those of who is left."""
        taken = [self.members.pop(request_id) for request_id in request_ids]
        self._measure(list(self.members.values()))
        return taken

    def split(self) -> list[Batch]:
        """Two even halves, each alike in length as far as may be; one of a batch of one."""
        ordered = sorted(self.members.values(), key=lambda member: (sum(member.shape), member.work.arrival))
        middle = (len(ordered) + 1) // 2
        halves = (ordered[:middle], ordered[middle:])
        return [Batch(half) for half in halves if half]


class Batches:
    """The queue of batches. A request joins the open one that then wastes least, below `phi`, or begins a new one.

    A batch never grows beyond `tokens` of memory or `rows`; one that cannot take another like its members is closed.
    """

    def __init__(self, phi: float) -> None:
        self._phi = phi
        self._batches: dict[int, Batch] = {}  # by identity, in the order they were begun
        self._of: dict[str, Batch] = {}
        self._open: OrderedDict[int, Batch] = OrderedDict()
        self._cells: dict[tuple[int, int], OrderedDict[int, Batch]] = {}

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches.values())

    def __len__(self) -> int:
        return len(self._batches)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._of

    def place(self, member: Member, rows: int, tokens: float) -> Batch:
        """The batch that it joined."""
        batch = self.joins(member, rows, tokens)
        if batch is None:
            batch = Batch()
            self._batches[id(batch)] = batch
        else:
            self._close(batch)
        batch.add(member)
        self._of[member.work.id] = batch
        if len(batch.members) < rows and batch.memory_with(member) <= tokens:
            self._open[id(batch)] = batch
            self._cells.setdefault(_cell(batch.longest), OrderedDict())[id(batch)] = batch
        return batch

    def joins(self, member: Member, rows: int, tokens: float) -> Batch | None:
        """The open batch that it would join; `None` where it would begin one."""
        near = self._least(self._near(member.shape), member, rows, tokens)
        return near or self._least(self._newest(), member, rows, tokens)

    def some(self, most: int) -> list[Batch]:
        """Evenly chosen batches, all of them where there are no more than `most`."""
        return list(islice(self._batches.values(), 0, None, max(1, -(-len(self._batches) // most))))

    def put(self, batch: Batch) -> None:
        """A batch as it is, closed."""
        self._batches[id(batch)] = batch
        self._of.update(dict.fromkeys(batch.members, batch))

    def take(self, batch: Batch) -> None:
        """It is started, or replaced by others."""
        self._close(batch)
        del self._batches[id(batch)]
        for request_id in batch.members:
            del self._of[request_id]

    def drop(self, request_id: str) -> None:
        """One request leaves, if it is here."""
        batch = self._of.get(request_id)
        if batch is not None:
            self.cut(batch, [request_id])

    def cut(self, batch: Batch, request_ids: Iterable[str]) -> list[Member]:
        """Take some out of a batch, which stays open if it was, or goes if nobody is left."""
        was_open = self._close(batch)
        taken = batch.remove(request_ids)
        for member in taken:
            del self._of[member.work.id]
        if not batch.members:
            del self._batches[id(batch)]
        elif was_open:
            self._open[id(batch)] = batch
            self._cells.setdefault(_cell(batch.longest), OrderedDict())[id(batch)] = batch
        return taken

    def full(self, batch: Batch) -> bool:
        """Whether nobody joins it any more."""
        return id(batch) not in self._open

    def _close(self, batch: Batch) -> bool:
        if self._open.pop(id(batch), None) is None:
            return False
        cell = self._cells[_cell(batch.longest)]
        del cell[id(batch)]
        if not cell:
            del self._cells[_cell(batch.longest)]
        return True

    def _near(self, shape: Shape) -> Iterator[Batch]:
        row, column = _cell(shape)
        for place in ((row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
            yield from _last(self._cells.get(place), OPEN_IN_CELL)

    def _newest(self) -> Iterator[Batch]:
        return _last(self._open, OPEN_ANYWHERE)

    def _least(self, batches: Iterable[Batch], member: Member, rows: int, tokens: float) -> Batch | None:
        """The one that wastes least with it, the first of equals, among those that may take it."""
        best: tuple[float, Batch] | None = None
        for batch in batches:
            if len(batch.members) >= rows or batch.memory_with(member) > tokens:
                continue
            wasted = batch.waste_with(member.shape)
            if wasted < (self._phi if best is None else best[0]):
                best = (wasted, batch)
        return best[1] if best else None


def _cell(shape: Shape) -> tuple[int, int]:
    return shape.input.bit_length(), shape.output.bit_length()


def _last(batches: OrderedDict[int, Batch] | None, count: int) -> Iterator[Batch]:
    for _, batch in zip(range(count), reversed(batches.values()) if batches else (), strict=False):
        yield batch
