"""A service's policy, placement and admission, each of whose calls is written down with its inputs and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import msgspec

from foreserve.core import Outcome, Work
from foreserve.dispatch.decisions import (
    Add,
    Admitted,
    Begun,
    Ended,
    FrozenRoom,
    Line,
    Made,
    Picked,
    Placed,
    Remove,
    Settled,
    Stood,
    encoded,
    frozen,
)
from foreserve.dispatch.journal import Journal
from foreserve.ports import (
    Admission,
    Ahead,
    BatchPolicy,
    HearsRanks,
    Pick,
    Placement,
    QueueView,
    Ranked,
    Refusal,
    Room,
    Shortlisted,
    Wait,
    ranked,
)

MOST_ROOMS: Final = 4096
"""Rooms that are remembered so as not to be written twice."""


class Tape:
    """Where the calls of one service go. Everything is written at once: what it is made of may change later."""

    def __init__(self, service: str, journal: Journal) -> None:
        self.service = service
        self.seen: Sequence[Room] = ()
        self.among: tuple[str, ...] = ()
        """The rooms of the last pick, and which of them it allowed."""
        self._journal = journal
        self._work: Work | None = None
        self._rooms: dict[str, FrozenRoom] = {}
        self._looked: dict[str, Room] = {}
        """The same as they were given: one that is given again has not changed (see `Runner.room`)."""

    def write(self, line: Line) -> None:
        """One line."""
        self._journal.put(encoded(line))

    def again(self, work: Work) -> Work | None:
        """`None` where the last work that was written is this one; else it, without its payload."""
        told = msgspec.structs.replace(work, payload=None)
        if told == self._work:
            return None
        self._work = told
        return told

    def rooms(self, rooms: Sequence[Room]) -> list[FrozenRoom | str]:
        """As in `Picked`."""
        if len(self._rooms) > MOST_ROOMS:
            self._rooms.clear()
            self._looked.clear()
        return [self._told(room) for room in rooms]

    def _told(self, room: Room) -> FrozenRoom | str:
        if self._looked.get(room.replica) is room:
            return room.replica
        self._looked[room.replica] = room
        now = frozen(room)
        if self._rooms.get(room.replica) == now:
            return room.replica
        self._rooms[room.replica] = now
        return now


class RecordedPolicy:
    """A batch policy that does not tell the order."""

    def __init__(self, policy: BatchPolicy, tape: Tape) -> None:
        self.inner = policy
        self._tape = tape

    def add(self, work: Work, now: float) -> None:
        """See `BatchPolicy`."""
        tape = self._tape
        tape.write(Add(service=tape.service, now=now, work=tape.again(work)))
        self.inner.add(work, now)

    def remove(self, request_id: str) -> None:
        """See `BatchPolicy`."""
        self._tape.write(Remove(service=self._tape.service, id=request_id))
        self.inner.remove(request_id)

    def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
        """See `BatchPolicy`."""
        seen = list(rooms)
        asked = Picked(service=self._tape.service, now=now, rooms=self._tape.rooms(seen))
        try:
            answer = self.inner.pick(seen, now)
        except Exception as error:
            self._tape.write(msgspec.structs.replace(asked, raised=repr(error)))
            raise
        tape = self._tape
        tape.write(answered(asked, answer))
        tape.seen, tape.among = (seen, answer.among) if isinstance(answer, Pick) else ((), ())
        return answer

    def settled(self, outcome: Outcome) -> None:
        """See `BatchPolicy`."""
        # What is for people or the kind's own may have a client's words in it.
        told = msgspec.structs.replace(outcome, reason="", detail=None, why="")
        self._tape.write(Settled(service=self._tape.service, outcome=told))
        self.inner.settled(outcome)


class RecordedOrder(RecordedPolicy):
    """A batch policy that is an `Ahead`."""

    def __init__(self, policy: BatchPolicy, order: Ahead, tape: Tape) -> None:
        super().__init__(policy, tape)
        self._order = order

    def ahead(self, work: Work, now: float) -> float:
        """See `ports.Ahead`."""
        place, tape = self._order.ahead(work, now), self._tape
        tape.write(Stood(service=tape.service, now=now, work=tape.again(work), place=place))
        return place


class RecordedPlacement:
    """A placement that does not rank."""

    def __init__(self, placement: Placement, tape: Tape) -> None:
        self._placement = placement
        self._tape = tape

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        """See `Placement`."""
        tape, ids = self._tape, tuple(work.id for work in works)
        asked = tape.rooms(rooms)
        replica = self._placement.place(works, rooms, now)
        tape.write(Placed(service=tape.service, now=now, ids=ids, rooms=asked, replica=replica))
        return replica


class RecordedShortlist(RecordedPlacement):
    """A placement that is shown a short list: which rooms were on it is written, and what has come of it is told."""

    def __init__(self, placement: Shortlisted, tape: Tape) -> None:
        super().__init__(placement, tape)
        self.shortlist = placement.shortlist
        self._listed = placement

    def rank(self, room: Room) -> Any:
        """See `Shortlisted`."""
        return self._listed.rank(room)

    def near(self, works: Sequence[Work]) -> Sequence[str]:
        """See `Shortlisted`."""
        return self._listed.near(works)

    def chosen(self, works: Sequence[Work], replica: str, now: float) -> int:
        """See `Shortlisted`. Told in a replay too, by the line of the placement."""
        return self._listed.chosen(works, replica, now)


class RecordedRanks(RecordedPlacement):
    """A placement that ranks: what its ranks have led to is written as if it had been asked."""

    by_rank: ClassVar[bool] = True

    def __init__(self, placement: Ranked, tape: Tape) -> None:
        super().__init__(placement, tape)
        self._by_rank = placement
        self._heard_rank = placement.chosen if isinstance(placement, HearsRanks) else None

    def rank(self, room: Room) -> Any:
        """See `Ranked`."""
        return self._by_rank.rank(room)

    def chosen(self, works: Sequence[Work], replica: str, now: float) -> None:
        """See `ports.HearsRanks`. The rooms are those of the pick, of which nothing has been taken yet."""
        tape, ids = self._tape, tuple(work.id for work in works)
        among = tape.among
        fitting = [room for room in tape.seen if (not among or room.replica in among) and room.takes(works)]
        tape.write(Placed(service=tape.service, now=now, ids=ids, rooms=tape.rooms(fitting), replica=replica))
        if self._heard_rank is not None:
            self._heard_rank(works, replica, now)


class RecordedAdmission:
    """An admission."""

    def __init__(self, admission: Admission, tape: Tape) -> None:
        self._admission = admission
        self._tape = tape

    def admit(self, work: Work, view: QueueView, now: float) -> Refusal | None:
        """See `Admission`."""
        refusal, tape = self._admission.admit(work, view, now), self._tape
        tape.write(Admitted(service=tape.service, now=now, work=tape.again(work), view=view, refusal=refusal))
        return refusal


def answered(asked: Picked, answer: Pick | Wait | None) -> Picked:
    """`asked` with its answer."""
    match answer:
        case Pick():
            return msgspec.structs.replace(asked, pick=answer)
        case Wait(until=until):
            return msgspec.structs.replace(asked, until=until)
    return asked


def begin(journal: Journal, version: str) -> None:
    """The first line of a recording."""
    journal.put(encoded(Begun(version=version)))


def ended(why: str) -> bytes:
    """The last line of a recording."""
    return encoded(Ended(why=why))


def recorded(
    tape: Tape, made: Made, policy: BatchPolicy, placement: Placement, admission: Admission
) -> tuple[BatchPolicy, Placement, Admission]:
    """These, as `made`, from now on written down."""
    tape.write(made)
    order = RecordedOrder(policy, policy, tape) if isinstance(policy, Ahead) else RecordedPolicy(policy, tape)
    return order, _placement(placement, tape), RecordedAdmission(admission, tape)


def _placement(placement: Placement, tape: Tape) -> Placement:
    if (by_rank := ranked(placement)) is not None:
        return RecordedRanks(by_rank, tape)
    return (
        RecordedShortlist(placement, tape) if isinstance(placement, Shortlisted) else RecordedPlacement(placement, tape)
    )
