"""What the replicas of one service can take now: kept up as they change, so that many of them cost no more than a few.

Where the placement ranks replicas one by one they stand in that order, and who has room is found from the front. A room
is looked at when a policy comes to it, and not before.
"""

from __future__ import annotations

import weakref
import zlib
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import Any, Final, Protocol, overload

from foreserve.core import Cost, Work
from foreserve.ports import Room

DRAWN: Final = 2
"""Rooms on a short list that are there by chance."""


class Runner(Protocol):
    """A replica, as far as its dispatcher is concerned."""

    name: str

    def capacity(self) -> Cost:
        """What it can hold at once; the same for as long as it is attached."""
        ...

    def room(self) -> Room | None:
        """What it can take now, `None` when nothing. The same object again only while nothing about it has changed."""
        ...

    def run(self, works: Sequence[Work], plan: Any, cached: int = 0) -> None:
        """Start them. `cached`: that many tokens of their prompts are expected to be in its cache."""
        ...

    def abort(self, ids: Sequence[str]) -> None: ...
    def feed(self, request_id: str, data: Any, last: bool) -> None:
        """More of an input that is still growing, of a request that it runs."""
        ...


class _Place:
    """One replica's: its key while it has room, and how many of its slots are free."""

    __slots__ = ("free", "key", "order", "runner")

    def __init__(self, runner: Runner, order: int) -> None:
        self.runner = runner
        self.order = order
        self.key: tuple[Any, int, _Place] | None = None
        self.free = 0.0


class Rooms:
    """Those that have a free slot, by `rank` (least first) and then as they came; without `rank` as they came.

    A rank may change only with what runs there. `changed` must be called when work was started, has begun to answer or
    has ended there; a replica that takes no more work for another reason is found out when it is looked at.
    """

    def __init__(self, rank: Callable[[Room], Any] | None = None) -> None:
        self._rank = rank
        self._places: dict[str, _Place] = {}
        self._open: list[tuple[Any, int, _Place]] = []
        self._changed: dict[str, None] = {}
        self._free = 0.0
        self._order = 0
        self._walk: Generator[Room] | None = None
        """What is shown, as far as nobody has looked."""
        self.slots = 0.0
        """Of all replicas together, free or not."""

    # --- what changes them

    def attach(self, runner: Runner) -> None:
        """It is ready."""
        self.detach(runner.name)
        self._order += 1
        self._places[runner.name] = _Place(runner, self._order)
        self.changed(runner.name)
        self._count()

    def detach(self, name: str) -> None:
        """It is gone or leaves. Unknown names are ignored."""
        place = self._places.pop(name, None)
        if place is not None:
            self._close(place)
            self._count()

    def changed(self, name: str) -> None:
        """What it can take is another than before. Unknown names are ignored."""
        self._changed[name] = None

    def _count(self) -> None:
        self.slots = sum(place.runner.capacity().get("slots", 1.0) for place in self._places.values())

    def _close(self, place: _Place) -> None:
        if place.key is not None:
            del self._open[bisect_left(self._open, place.key)]
            self._free -= place.free
            place.key = None

    def _look(self) -> None:
        """Put those that have changed where they belong."""
        for name in self._changed:
            place = self._places.get(name)
            if place is None:
                continue
            self._close(place)
            room = place.runner.room()
            if room is not None:
                place.key = (None if self._rank is None else self._rank(room), place.order, place)
                place.free = room.free["slots"]
                self._free += place.free
                insort(self._open, place.key)
        self._changed.clear()

    # --- what can be read

    @property
    def free_slots(self) -> float:
        """Of all replicas together."""
        if self._changed:
            self._look()
        return self._free

    def first(self, works: Sequence[Work], among: Collection[str] = ()) -> Room | None:
        """The first that takes these together; `among`: of the replicas with these names alone."""
        for room in self:
            if (not among or room.replica in among) and room.takes(works):
                return room
        return None

    def shortlist(self, works: Sequence[Work], among: Collection[str], most: int, near: Collection[str]) -> list[Room]:
        """The first `most` that take these together, then those of `near`, then two drawn by the first work's id.

        Only of the replicas named in `among`, where it names any. At most twice as many are tried as are wanted, so
        that a fleet where few have room costs no more; all are where none of those has, or where there are so few.
        """
        if self._changed:
            self._look()
        found: dict[str, Room] = {}
        places = tuple(self._open)
        enough = most if len(places) > most + DRAWN else len(places)
        for tried, (_, _, place) in enumerate(places):
            if len(found) >= enough or (found and tried >= 2 * enough):
                break
            self._try(place, works, among, found)
        if enough < len(places):
            for name in near:
                if (known := self._places.get(name)) is not None:
                    self._try(known, works, among, found)
            drawn = zlib.crc32(works[0].id.encode())
            for _ in range(DRAWN):
                drawn, at = divmod(drawn, len(places))
                self._try(places[at][2], works, among, found)
        return list(found.values())

    def _try(self, place: _Place, works: Sequence[Work], among: Collection[str], found: dict[str, Room]) -> None:
        """Put it among those found if these fit there."""
        name = place.runner.name
        if place.key is None or name in found or (among and name not in among):
            return
        room = place.runner.room()
        if room is None:
            self._close(place)
        elif room.takes(works):
            found[name] = room

    def show(self) -> Shown:
        """What a policy is given, which may go on looking until the next call of this or of `hide`."""
        self._walk = self._walked()
        return Shown(self._walk)

    def hide(self) -> None:
        """Nobody may look on."""
        self._walk = None

    def __iter__(self) -> Iterator[Room]:
        return self._walked()

    def _walked(self) -> Generator[Room]:
        if self._changed:
            self._look()
        for _, _, place in tuple(self._open):
            room = place.runner.room()
            if room is None:
                self._close(place)
            else:
                yield room

    def __bool__(self) -> bool:
        if self._changed:
            self._look()
        while self._open:
            place = self._open[0][2]
            if place.runner.room() is not None:
                return True
            self._close(place)
        return False


class Shown(Sequence[Room]):
    """Rooms as a policy sees them in one pick: each is looked up when it is first asked for, and stays as it was then.

    It leads to no replica, and so to no engine and nothing that one alone may know: a reference that is weak holds
    nothing.
    """

    __slots__ = ("_rest", "_seen")

    def __init__(self, rooms: Generator[Room]) -> None:
        self._seen: list[Room] = []
        self._rest: weakref.ref[Generator[Room]] | None = weakref.ref(rooms)
        """`None` once all are seen."""

    def _more(self) -> bool:
        """See one more, if there is any."""
        if self._rest is None:
            return False
        rooms = self._rest()
        if rooms is None:
            raise RuntimeError("rooms may be looked at during the pick alone; list(rooms) keeps them for longer")
        for room in rooms:
            self._seen.append(room)
            return True
        self._rest = None
        return False

    def _all(self) -> list[Room]:
        while self._more():
            pass
        return self._seen

    def __iter__(self) -> Iterator[Room]:
        at = 0
        while at < len(self._seen) or self._more():
            yield self._seen[at]
            at += 1

    def __bool__(self) -> bool:
        return bool(self._seen) or self._more()

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, at: int) -> Room: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Room]: ...
    def __getitem__(self, at: int | slice) -> Room | Sequence[Room]:
        if isinstance(at, slice) or at < 0:
            return self._all()[at]
        while at >= len(self._seen) and self._more():
            pass
        return self._seen[at]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Shown, list, tuple)):
            return NotImplemented
        return self._all() == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Sequence[Room]) -> list[Room]:
        return [*self, *other]

    def __radd__(self, other: Sequence[Room]) -> list[Room]:
        return [*other, *self]

    def __repr__(self) -> str:
        return f"<rooms seen: {self._seen}>"
