"""What is held in memory for whom: a pure state machine of entries, each one image of weights (after SAGE, 3.3 to 3.5).

    absent -> LOADING -> READY -> EVICTING -> absent        LOADING -> failed (all who wait are told) -> absent

An entry is loaded once, however many ask meanwhile. While somebody holds it, it stays. When nobody does it is idle: it
goes after `idle_s`, or sooner where room is wanted, those first that give most bytes for the seconds that it takes to
have them again. Who asks for what is just going waits until it is gone and has it loaded anew.

Methods return what is to be done, in order. Times are `now` of the caller's clock, in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count

from foreserve.runtime.memory_entry import Arm, Deny, Effect, Entry, Evict, Give, Grant, Load, Refuse, State, Stop


class Table:
    """All entries. `capacity` bounds the bytes of all together (`None`: no bound). Leases are the caller's numbers.

    `setting` is what people call that bound.
    """

    def __init__(self, idle_s: float, capacity: int | None = None, setting: str = "host_gb") -> None:
        self._idle_s = idle_s
        self._capacity = capacity
        self.setting = setting
        self._numbers = count(1)
        self._by_key: dict[str, Entry] = {}
        self._held: dict[int, Entry] = {}
        self._waiting: deque[Entry] = deque()
        self.entries: dict[int, Entry] = {}
        self.hits = self.misses = 0
        """How often what was asked for was there or on its way, and how often not."""

    @property
    def bytes(self) -> int:
        """The room that is kept for all entries."""
        return sum(entry.bytes for entry in self.entries.values())

    def find(self, key: str) -> Entry | None:
        """The entry with this content."""
        return self._by_key.get(key)

    def holders(self) -> dict[int, Entry]:
        """Of every lease, what it holds or waits for."""
        return self._held

    def stalled(self, entry: Entry) -> bool:
        """Whether it waits, itself or behind another, for somebody to let go of what he holds."""
        return entry.waits and self._lacking(self._waiting[0]) > self._leaving()

    # --- who asks

    def acquire(self, lease: int, key: str, size: int, now: float) -> list[Effect]:
        """Hold the content `key`, of `size` bytes (0: not known before it is loaded)."""
        entry = self._by_key.get(key)
        if entry is None:
            if self._capacity is not None and size > self._capacity:
                words = f"it has {size} bytes; all weights together may take {self._capacity} ({self.setting})"
                return [Refuse(lease, words)]
            entry = self._new(key, size)
            self._waiting.append(entry)
        absent = not entry.leases and entry.state is not State.READY
        self._hold(lease, entry)
        self.misses += absent
        self.hits += not absent
        entry.hits += not absent
        if entry.state is State.READY:
            return [Give(lease, entry)]
        return self._serve(now)

    def adopt(self, lease: int, key: str, size: int, restore_s: float, now: float) -> list[Effect]:
        """Hold what the caller has in memory already, unloaded. It counts even where there is no room for it."""
        if key in self._by_key:
            return self.acquire(lease, key, size, now)
        entry = self._new(key, size)
        entry.state, entry.started, entry.bytes, entry.restore_s = State.READY, True, size, restore_s
        self._hold(lease, entry)
        return [Give(lease, entry)]

    def release(self, lease: int, now: float) -> list[Effect]:
        """Hold it no longer. Unknown leases, as one that was refused, are none."""
        entry = self._held.pop(lease, None)
        if entry is None:
            return []
        del entry.leases[lease]
        if entry.leases or entry.state is State.EVICTING:
            return []
        if entry.state is State.READY:
            entry.generation += 1
            entry.idle_since = now
            effects = self._evict([entry]) if not entry.keys else [Arm(entry, entry.generation, now + self._idle_s)]
            return [*effects, *self._serve(now)]
        if entry.waits:
            self._remove(entry)
            return self._serve(now)
        self._unqueue(entry)
        entry.state = State.EVICTING
        return [Stop(entry), *self._serve(now)]

    # --- what becomes of loads

    def resize(self, entry: Entry, size: int, now: float) -> list[Effect]:
        """A load finds that it needs `size` bytes in all: answered by `Grant` or `Deny`, at once or soon."""
        if entry.state is not State.LOADING:
            return []
        entry.wants = size
        if size <= entry.bytes:
            return [Grant(entry)]
        self._waiting.appendleft(entry)
        return self._serve(now)

    def loaded(self, entry: Entry, size: int, restore_s: float, bytes_read: int, now: float) -> list[Effect]:
        """It is there, with `size` bytes (at most what was granted), `restore_s` after its load began."""
        if size > entry.bytes:
            raise ValueError(f"{size} bytes were loaded where {entry.bytes} were granted")
        entry.bytes, entry.restore_s, entry.bytes_read = size, restore_s, bytes_read
        if entry.state is not State.LOADING:  # told to stop when it was done
            return [Evict(entry)]
        entry.state = State.READY
        return [*(Give(lease, entry) for lease in entry.leases), *self._serve(now)]

    def failed(self, entry: Entry, reason: str, now: float) -> list[Effect]:
        """Its load went wrong: all who wait are told, and the next who asks has it tried again."""
        if entry.state is not State.LOADING:
            return self.gone(entry, now)
        refusals = [Refuse(lease, reason) for lease in entry.leases]
        for lease in entry.leases:
            del self._held[lease]
        self._remove(entry)
        return [*refusals, *self._serve(now)]

    def gone(self, entry: Entry, now: float) -> list[Effect]:
        """Its memory is free. Who has asked for it meanwhile gets it loaded anew."""
        entry.bytes, entry.started = 0, False
        if entry.leases:
            entry.state = State.LOADING
            self._waiting.append(entry)
        else:
            self._remove(entry)
        return self._serve(now)

    def fired(self, entry: Entry, generation: int, now: float) -> list[Effect]:
        """A timer that `Arm` has set. One that was set before the entry was held again does nothing."""
        if not entry.idle or entry.generation != generation:
            return []
        return [*self._evict([entry]), *self._serve(now)]

    def shed(self, wanted: int) -> list[Effect]:
        """There is less room than we think: let `wanted` bytes go, or all that may, those of least value first."""
        return self._evict(self._least(wanted - self._leaving())[0])

    # --- identities

    def learn(self, entry: Entry, key: str) -> None:
        """`key` is another identity of its content; ignored where another entry has it."""
        if entry.keys and self._by_key.setdefault(key, entry) is entry and key not in entry.keys:
            entry.keys.append(key)

    def forget(self, entry: Entry) -> list[Effect]:
        """What is there is no longer what its identities say: who has it keeps it, nobody else gets it."""
        for key in entry.keys:
            del self._by_key[key]
        entry.keys = []
        return self._evict([entry]) if entry.idle else []

    # --- room

    def _serve(self, now: float) -> list[Effect]:
        """Give room to who waits for it, in order: a small one that passed would let a large one wait for ever.

        A load that has begun and finds out what it needs does not wait for others to let go, who may wait for it.
        """
        effects: list[Effect] = []
        while self._waiting:
            entry = self._waiting[0]
            lacking = self._lacking(entry)
            if lacking > self._going() and entry.started:
                self._waiting.popleft()
                words = f"it needs {entry.wants} bytes; all weights together may take {self._capacity} ({self.setting})"
                effects.append(Deny(entry, f"{words}, and {self.bytes - entry.bytes} are in use"))
            elif lacking > 0:
                return effects + self._evict(self._victims(lacking))
            else:
                self._waiting.popleft()
                entry.bytes = max(entry.bytes, entry.wants)
                effects.append(Grant(entry) if entry.started else Load(entry))
                entry.started = True
        return effects

    def _lacking(self, entry: Entry) -> int:
        """The bytes that are not free and that it waits for."""
        return 0 if self._capacity is None else self.bytes + entry.wants - entry.bytes - self._capacity

    def _going(self) -> int:
        """The bytes that are being freed, or can be at once."""
        return self._leaving() + sum(each.bytes for each in self.entries.values() if each.idle)

    def _leaving(self) -> int:
        """The bytes that are being freed."""
        return sum(each.bytes for each in self.entries.values() if each.state is State.EVICTING)

    def _victims(self, lacking: int) -> list[Entry]:
        """The idle entries of least value whose going is enough; none where all of them would not be."""
        victims, lacking = self._least(lacking - self._leaving())
        return victims if lacking <= 0 else []

    def _least(self, wanted: int) -> tuple[list[Entry], int]:
        """The idle entries of least value that have `wanted` bytes together, and what is still wanted beyond all."""
        idle = sorted((each for each in self.entries.values() if each.idle), key=lambda e: (e.density, e.idle_since))
        victims = []
        for entry in idle:
            if wanted <= 0:
                break
            victims.append(entry)
            wanted -= entry.bytes
        return victims, wanted

    def _evict(self, entries: Sequence[Entry]) -> list[Effect]:
        for entry in entries:
            entry.state = State.EVICTING
        return [Evict(entry) for entry in entries]

    # --- the tables themselves

    def _new(self, key: str, size: int) -> Entry:
        entry = Entry(next(self._numbers), key, size)
        self.entries[entry.number] = self._by_key[key] = entry
        return entry

    def _hold(self, lease: int, entry: Entry) -> None:
        if lease in self._held:
            raise ValueError(f"lease {lease} holds something already")
        self._held[lease] = entry
        entry.leases[lease] = None
        entry.generation += 1

    def _remove(self, entry: Entry) -> None:
        del self.entries[entry.number]
        for key in entry.keys:
            del self._by_key[key]
        entry.keys = []
        self._unqueue(entry)

    def _unqueue(self, entry: Entry) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)
