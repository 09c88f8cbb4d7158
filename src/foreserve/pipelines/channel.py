"""A stream at run time: the children of one parent, known by their index, complete by their count.

Items may come in any order and more than once. What tells the end is the count, whenever that comes.
"""

from __future__ import annotations

import functools
from typing import Any

from foreserve.pipelines.log import Log, whole

Index = Any
"""A child's number within its parent, from 0. Of a flattened stream, the pair of both numbers."""


class Channel(Log):
    """The node of one (ancestry, edge): a `Log` of items whose indices are in `indices`, in step with `items`.

    With `ordered` items are handed on by index, those that come early are held back. Items that are logs themselves
    (streams of streams, live texts) are handed on while they grow; the channel is complete when they are.
    """

    __slots__ = ("_early", "_next", "_ordered", "_unfinished", "counted", "gaps", "indices")

    def __init__(self, *, ordered: bool = False) -> None:
        super().__init__()
        self.indices: list[Index] = []
        self._ordered = ordered
        self._next = 0  # all below have come
        self._early: dict[Index, Any] = {}  # those at or above that have come, and, where ordered, what they are
        self._unfinished = 0
        self.gaps: list[Index] = []
        """The indices of those that were dropped."""
        self.counted: int | None = None
        """How many children there are, those that were dropped too; `None` until the end was told."""

    # --- the writer's side

    def put(self, index: Index, value: Any, attempt: int | None = None) -> None:
        """One child. One that has come already, or of another attempt than the present, is left out.

        Raises TooMany.
        """
        if attempt is not None and attempt != self.attempt:
            return
        if index == self._next:
            self._next = index + 1
        elif not self._comes_early(index, value):
            return
        self._hand_on(index, value)
        if self._early:
            self._catch_up()
        if self.counted is not None:
            self._check()

    def drop(self, index: Index) -> None:
        """There will be no such child: it counts and is not seen."""
        if index == self._next:
            self._next = index + 1
        elif not self._comes_early(index, _DROPPED):
            return
        self._drop(index)
        if self._early:
            self._catch_up()
        if self.counted is not None:
            self._check()

    def end(self, count: int) -> None:
        """There are `count` children, whether they have come or not. Said again it changes nothing."""
        if self.counted is None:
            self.counted = count
            self._check()

    def _drop(self, index: Index) -> None:
        self.gaps.append(index)
        for reader in self.readers:
            reader.dropped(index)

    def _comes_early(self, index: Index, value: Any) -> bool:
        """Whether an item out of order is to be handed on now."""
        if isinstance(index, int) and index < self._next:
            return False
        if index in self._early:
            return False
        if self._ordered:
            self._early[index] = value
            if value is _DROPPED:
                self._drop(index)
            return False
        self._early[index] = None
        return True

    def _catch_up(self) -> None:
        """Those that came early and are next now."""
        while self._next in self._early:
            index, value = self._next, self._early.pop(self._next)
            self._next += 1
            if self._ordered and value is not _DROPPED:
                self._hand_on(index, value)

    def _hand_on(self, index: Index, value: Any) -> None:
        self._check_room()
        self.items.append(value)
        self.indices.append(index)
        if isinstance(value, Log):
            self._unfinished += 1
            value.when_complete(functools.partial(self._child_complete, self.attempt))
        for reader in self.readers:
            reader.news()

    def _child_complete(self, attempt: int) -> None:
        if attempt == self.attempt:
            self._unfinished -= 1
            if self.counted is not None:
                self._check()

    def _check(self) -> None:
        if len(self.items) + len(self.gaps) != self.counted or self.complete:
            return
        if not self.ended:
            self.ended = True
            if self._unfinished:
                for reader in tuple(self.readers):
                    reader.news()
        if not self._unfinished:
            self._finish()

    def retract(self) -> None:
        self.indices.clear()
        self.gaps.clear()
        self._next = self._unfinished = 0
        self._early.clear()
        self.counted = None
        super().retract()

    # --- the readers' side

    @property
    def count(self) -> int | None:
        """How many children there are, those that were dropped left out; `None` until the end was told."""
        return None if self.counted is None else self.counted - len(self.gaps)

    def whole(self) -> list[Any]:
        """Its items by index, streams in them as lists."""
        order = sorted(range(len(self.items)), key=self.indices.__getitem__)
        return [whole(self.items[at]) for at in order]


_DROPPED = object()
