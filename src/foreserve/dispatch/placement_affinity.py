"""Where picked work runs, by the key that it has in common with others: they share what a replica remembers."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import ClassVar

from foreserve.core import Work
from foreserve.dispatch.placement import LeastRequests
from foreserve.ports import Room


class Affinity:
    """`affinity`: works of one key on one replica, unless that is much busier than the least busy; else the least busy.

    The key is a work's `affinity`: in a pipeline, that of the request and the child that its siblings belong to. Each
    key prefers the replicas in an order of its own (rendezvous hashing): there is no table to forget, a replica that
    comes or goes moves the keys that prefer it alone, and several gateways agree. Much busier is one that runs more
    than `MORE` works more. Hashes are the same in every process.
    """

    MORE: ClassVar[int] = 2

    def __init__(self) -> None:
        self._least = LeastRequests()

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        """See `Placement`."""
        key = works[0].affinity
        least = min(rooms, key=self._least.rank)
        if key is None:
            return least.replica
        preferred = max(rooms, key=lambda room: preference(key, room.replica))
        return preferred.replica if preferred.running <= least.running + self.MORE else least.replica


def preference(key: str, replica: str) -> bytes:
    """How much a key prefers a replica; compared with other replicas' alone."""
    return blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest()
