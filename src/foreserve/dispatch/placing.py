"""Where a pick runs: one of the three ways in which a placement may choose among the rooms."""

from __future__ import annotations

from collections.abc import Sequence

from foreserve.core import Work
from foreserve.dispatch.rooms import Rooms
from foreserve.ports import HearsRanks, Placement, Room, Shortlisted, ranked


class Placing:
    """Asks one placement, of the rooms that it keeps in the order of its ranks where it has such."""

    def __init__(self, placement: Placement) -> None:
        by_rank = ranked(placement)
        self._placement = placement
        self._ranked = by_rank is not None
        self._heard_rank = by_rank.chosen if isinstance(by_rank, HearsRanks) else None
        self._listed = placement if by_rank is None and isinstance(placement, Shortlisted) else None
        in_order = by_rank or self._listed
        self.rooms = Rooms(None if in_order is None else in_order.rank)

    def room_for(self, works: Sequence[Work], among: Sequence[str], now: float) -> tuple[Room, int]:
        """Where these run, and how many tokens of their prompts are cached there.

        Raises LookupError when they fit nowhere: the policy has picked what it must not.
        """
        if self._ranked:
            room = self.rooms.first(works, among)
            if room is None:
                raise LookupError(f"{', '.join(work.id for work in works)} picked, and no replica has room")
            if self._heard_rank is not None:
                self._heard_rank(works, room.replica, now)
            return room, 0
        if self._listed is not None:
            near = self._listed.near(works)
            listed = self.rooms.shortlist(works, among, self._listed.shortlist, near)
            if not listed:
                raise LookupError(f"{', '.join(work.id for work in works)} picked, and no replica has room")
            replica = self._listed.place(works, listed, now)
            room = next(room for room in listed if room.replica == replica)
            return room, self._listed.chosen(works, replica, now)
        rooms = (room for room in self.rooms if not among or room.replica in among)
        fitting = {room.replica: room for room in rooms if room.takes(works)}
        return fitting[self._placement.place(works, list(fitting.values()), now)], 0
