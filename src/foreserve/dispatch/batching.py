"""First-come batch policies: one request at a time as room comes, or fixed batches."""

from __future__ import annotations

from collections.abc import Sequence

from foreserve.core import Outcome, Work
from foreserve.errors import ConfigError
from foreserve.ports import Pick, Room, Wait


class _FirstCome:
    """Waiting work in order of arrival; a retried request keeps its place by its first arrival."""

    def __init__(self) -> None:
        self._waiting: dict[str, Work] = {}

    def add(self, work: Work, now: float) -> None:
        self._waiting[work.id] = work
        if work.attempt:
            # A retry arrived before those that wait. It is rare, so that sorting costs less than keeping a heap.
            self._waiting = dict(sorted(self._waiting.items(), key=lambda item: item[1].arrival))

    def remove(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)

    def settled(self, outcome: Outcome) -> None:
        """First come learns nothing."""


class FirstCome(_FirstCome):
    """`fcfs`: the oldest request runs as soon as some replica has room for it; nobody overtakes."""

    def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
        head = next(iter(self._waiting.values()), None)
        if head is None or not any(room.takes([head]) for room in rooms):
            return None
        del self._waiting[head.id]
        return Pick(ids=(head.id,), why="first come, first served")


class FixedBatches(_FirstCome):
    """`fixed`: first-come batches of up to `size`, closed when full or when the oldest has waited `max_wait_s`.

    For static engines, where a batch runs until its longest answer ends. Without a `size` it is the room's slots.

    Who comes back, since memory ran out or its replica was lost, runs with others of its attempt alone, and for each
    attempt in a batch of half the size: what was too much together is not put together again.
    """

    def __init__(self, size: int | None = None, max_wait_s: float = 0.05) -> None:
        super().__init__()
        if size is not None and size < 1:
            raise ConfigError(f"policy fixed: `size` is {size}; it must be at least 1")
        if max_wait_s < 0:
            raise ConfigError(f"policy fixed: `max_wait_s` is {max_wait_s}; it must be at least 0")
        self._size = size
        self._max_wait_s = max_wait_s

    def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
        head = next(iter(self._waiting.values()), None)
        if head is None:
            return None
        batches = [self._fill(room) for room in rooms if room.takes([head])]
        if not batches:
            return None
        batch, full = max(batches, key=lambda found: len(found[0]))
        closes = head.arrival + self._max_wait_s
        if not full and now < closes:
            return Wait(until=closes)
        for request_id in batch:
            del self._waiting[request_id]
        return Pick(ids=tuple(batch), why=f"first-come batch of {len(batch)}, {'full' if full else 'waited enough'}")

    def _fill(self, room: Room) -> tuple[list[str], bool]:
        """The first of the head's attempt that `room` takes together, and whether waiting could not make them more."""
        attempt = next(iter(self._waiting.values())).attempt
        size = max(1, (self._size if self._size is not None else int(room.free.get("slots", 1))) >> attempt)
        batch: list[Work] = []
        for work in self._waiting.values():
            if work.attempt != attempt:
                continue
            if len(batch) == size or not room.takes([*batch, work]):
                return [work.id for work in batch], True
            batch.append(work)
        return [work.id for work in batch], len(batch) == size or attempt > 0
