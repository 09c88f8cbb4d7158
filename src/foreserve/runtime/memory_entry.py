"""The nouns of `memory_table`: an entry, where it stands, and what is to be done about it."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class State(StrEnum):
    """Where an entry stands. What is absent has none."""

    LOADING = "loading"
    READY = "ready"
    EVICTING = "evicting"


class Entry:
    """One image: `keys` are the identities of its content, `bytes` the room that is kept for it, `leases` who holds it.

    `wants` is the room it waits for. `generation` changes whenever it becomes idle or is held again.
    """

    def __init__(self, number: int, key: str, wants: int) -> None:
        self.number = number
        self.keys = [key]
        self.state = State.LOADING
        self.wants: int = wants
        self.bytes = 0
        self.leases: dict[int, None] = {}
        self.generation = 0
        self.idle_since = 0.0
        self.restore_s = 0.0
        self.bytes_read = 0
        self.hits = 0
        self.started = False
        """Whether its load has begun, or might have."""

    @property
    def idle(self) -> bool:
        """Whether it may go."""
        return self.state is State.READY and not self.leases

    @property
    def waits(self) -> bool:
        """Whether there is no room for it yet."""
        return self.state is State.LOADING and not self.started

    @property
    def density(self) -> float:
        """Seconds that having it again costs, for each byte that its going frees."""
        return self.restore_s / max(1, self.bytes)


class Load(msgspec.Struct, frozen=True):
    """Begin to load; its room is kept. Ends with `loaded`, `failed` or, once it was told to stop, `gone`."""

    entry: Entry


class Grant(msgspec.Struct, frozen=True):
    """The room that a load has asked for is kept now."""

    entry: Entry


class Deny(msgspec.Struct, frozen=True):
    """There will be no such room; the load is to fail."""

    entry: Entry
    reason: str


class Stop(msgspec.Struct, frozen=True):
    """Nobody waits for this load any more: stop it, free what it has and say `gone`."""

    entry: Entry


class Evict(msgspec.Struct, frozen=True):
    """Free the memory, then say `gone`."""

    entry: Entry


class Give(msgspec.Struct, frozen=True):
    """The image is there for this lease."""

    lease: int
    entry: Entry


class Refuse(msgspec.Struct, frozen=True):
    """This lease is over: its image cannot be had."""

    lease: int
    reason: str


class Arm(msgspec.Struct, frozen=True):
    """Call `fired` with this generation at `at`; an earlier timer of the entry is of no use any more."""

    entry: Entry
    generation: int
    at: float


Effect = Load | Grant | Deny | Stop | Evict | Give | Refuse | Arm
