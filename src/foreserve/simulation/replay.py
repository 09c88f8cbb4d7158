"""Recorded decisions made once more: the same policies, or others, are asked what was asked then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from foreserve.chosen import make_admission, make_placement, make_policy
from foreserve.core import Work
from foreserve.dispatch.decisions import (
    Add,
    Admitted,
    Begun,
    Ended,
    Entry,
    FrozenRoom,
    Made,
    Picked,
    Placed,
    Remove,
    Settled,
    Stood,
    decoded,
    encoded,
)
from foreserve.dispatch.journal import CLOSED
from foreserve.dispatch.recorded import answered
from foreserve.errors import ConfigError
from foreserve.fleet.ahead import Ahead as MappedAhead
from foreserve.fleet.ahead import FrozenAhead
from foreserve.ports import Admission, Ahead, BatchPolicy, HearsRanks, Placement, Room, Shortlisted, ranked
from foreserve.settings import QueueSettings

Asked = Picked | Placed | Stood | Admitted
"""The calls that have an answer."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The first decision that is not made again: its line in the file, as it was recorded, and what is decided now."""

    line: int
    recorded: Asked
    now: Asked


class Replayed(msgspec.Struct, kw_only=True):
    """How many decisions of each kind (`picked`, `placed`, `stood`, `admitted`) agree and differ."""

    agreed: Counter[str] = msgspec.field(default_factory=Counter)
    differed: Counter[str] = msgspec.field(default_factory=Counter)
    first: Difference | None = None
    calls: int = 0
    ended: str | None = None
    """Why the recording ends, in words, where it tells: not if its server was killed or runs, or the disk failed."""

    @property
    def whole(self) -> bool:
        """Whether all is in it that was decided until the server stopped."""
        return self.ended == CLOSED


class Instead(msgspec.Struct, frozen=True, kw_only=True):
    """Who decides in place of those that did: names as in the settings, `None` for those of the recording.

    `options` are added to the recorded ones, or, with another `policy`, are all that it has.
    """

    policy: str | None = None
    options: dict[str, Any] = {}
    placement: str | None = None
    admission: str | None = None

    @property
    def others(self) -> bool:
        """Whether another policy orders than did then: the words of its reasons are then others in any case."""
        return self.policy is not None or bool(self.options)


def replay(path: Path, instead: Instead, *, heard: Callable[[int], None] | None = None) -> Replayed:
    """Feed a recording to its policies, or to others, and compare every answer. `heard` is told of bytes read.

    After an answer that differs what was recorded is what happened. Raises ConfigError for a file that is no recording
    (with the line) and for policies that cannot be made.
    """
    found = Replayed()
    services: dict[str, _Service] = {}
    for number, entry in read(path, heard):
        if isinstance(entry, Ended):
            found.ended = entry.why
            break
        found.calls += 1
        if isinstance(entry, Made):
            services[entry.service] = _Service(entry, instead, services.get(entry.service))
            continue
        if entry.service not in services:
            raise ConfigError(f"{path}:{number}: service {entry.service!r} decides before it was made")
        try:
            answer = services[entry.service].call(entry)
        except KeyError as error:
            raise ConfigError(f"{path}:{number}: {error} is not known by then; lines are missing") from None
        if answer is None or not isinstance(entry, Asked):
            continue
        kind = type(entry).__name__.lower()
        if _same(entry, answer, instead):
            found.agreed[kind] += 1
        else:
            found.differed[kind] += 1
            if found.first is None:
                found.first = Difference(line=number, recorded=entry, now=answer)
    return found


def read(path: Path, heard: Callable[[int], None] | None = None) -> Iterator[tuple[int, Entry | Ended]]:
    """The lines of a recording, numbered from 1. A last line that was cut off in the middle is left out."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    with file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                entry = decoded(line)
            except msgspec.DecodeError as error:
                raise ConfigError(f"{path}:{number}: no line of a recording of decisions: {error}") from None
            if (number == 1) is not isinstance(entry, Begun):
                raise ConfigError(f"{path}:{number}: a recording of decisions tells what it is in its first line alone")
            if heard is not None:
                heard(len(line))
            if not isinstance(entry, Begun):
                yield number, entry


class _Service:
    """One service's deciders, fed call by call."""

    def __init__(self, made: Made, instead: Instead, before: _Service | None) -> None:
        self._policy = _policy(made, instead)
        queue = QueueSettings(
            max_waiting=made.max_waiting, max_wait_s=made.max_wait_s, admission=instead.admission or made.admission
        )
        self._admission: Admission = make_admission(made.service, queue, self._policy)
        # A policy that is adopted later leaves the placement, and what that remembers, as it is.
        self._placement: Placement = (
            make_placement(made.service, instead.placement or made.placement) if before is None else before._placement
        )
        self._works: dict[str, Work] = {} if before is None else before._works
        self._rooms: dict[str, FrozenRoom] = {} if before is None else before._rooms
        self._work: Work | None = None if before is None else before._work

    def call(self, entry: Entry) -> Asked | None:
        """Make one call, and return it as it is answered now; `None` where there is nothing to answer."""
        match entry:
            case Add():
                work = self._last(entry.work)
                self._works[work.id] = work
                self._policy.add(work, entry.now)
            case Remove():
                self._policy.remove(entry.id)
            case Settled():
                self._policy.settled(entry.outcome)
                self._works.pop(entry.outcome.id, None)
            case Picked():
                return self._pick(entry)
            case Placed():
                return msgspec.structs.replace(entry, replica=self._place(entry))
            case Stood():
                work = self._last(entry.work)
                if isinstance(self._policy, Ahead):
                    return msgspec.structs.replace(entry, place=self._policy.ahead(work, entry.now))
            case Admitted():
                refusal = self._admission.admit(self._last(entry.work), entry.view, entry.now)
                return msgspec.structs.replace(entry, refusal=refusal)
        return None

    def _pick(self, entry: Picked) -> Picked:
        asked = msgspec.structs.replace(entry, pick=None, until=None, raised="")
        try:
            answer = answered(asked, self._policy.pick(self._thawed(entry.rooms), entry.now))
        except Exception as error:
            answer = msgspec.structs.replace(asked, raised=repr(error))
        # From here on what was recorded has happened.
        ran = () if entry.pick is None else entry.pick.ids
        picked = () if answer.pick is None else answer.pick.ids
        for request_id in picked:
            if request_id not in ran:
                self._policy.add(self._works[request_id], entry.now)
        for request_id in ran:
            if request_id not in picked:
                self._policy.remove(request_id)
        return answer

    def _place(self, entry: Placed) -> str:
        """As the dispatcher asks: by the least rank, or all at once."""
        works = [self._works[request_id] for request_id in entry.ids]
        rooms = self._thawed(entry.rooms)
        by_rank = ranked(self._placement)
        if by_rank is None:
            placed = self._placement.place(works, rooms, entry.now)
            if isinstance(self._placement, Shortlisted):
                self._placement.chosen(works, entry.replica, entry.now)
            return placed
        replica = min(rooms, key=by_rank.rank).replica  # of equals the first: they are recorded in their order
        if isinstance(by_rank, HearsRanks):
            by_rank.chosen(works, entry.replica, entry.now)
        return replica

    def _last(self, work: Work | None) -> Work:
        if work is not None:
            self._work = work
        if self._work is None:
            raise KeyError("the work of this call")
        return self._work

    def _thawed(self, rooms: list[FrozenRoom | str]) -> list[Room]:
        return [self._thaw(room) for room in rooms]

    def _thaw(self, room: FrozenRoom | str) -> Room:
        if isinstance(room, str):
            room = self._rooms[room]
        self._rooms[room.replica] = room
        ahead = room.ahead
        return Room(
            replica=room.replica,
            free=room.free,
            capacity=room.capacity,
            running=room.running,
            load=room.load,
            ahead=None if ahead is None else MappedAhead.restored(msgspec.convert(ahead, FrozenAhead, strict=False)),
            tokens=room.tokens,
            unread=room.unread,
            token_s=room.token_s,
            step_s=room.step_s,
            heard=room.heard,
            holds=room.holds,
        )


def _policy(made: Made, instead: Instead) -> BatchPolicy:
    kept: Mapping[str, Any] = made.options if instead.policy in (None, made.policy) else {}
    return make_policy(made.service, instead.policy or made.policy, {**kept, **instead.options})


def _same(recorded: Asked, now: Asked, instead: Instead) -> bool:
    """Whether the same was decided. The words of the reason belong to it, unless another policy gives them."""
    if not instead.others or not isinstance(recorded, Picked) or not isinstance(now, Picked):
        return bool(_plain(recorded) == _plain(now))
    if recorded.pick is None or now.pick is None:
        return recorded.pick is now.pick
    return set(recorded.pick.ids) == set(now.pick.ids)


def _plain(asked: Asked) -> Any:
    """The answer as plain values, such as a file gives them."""
    match asked:
        case Picked():
            answer: Any = (asked.pick, asked.until, asked.raised)
        case Placed():
            answer = asked.replica
        case Stood():
            answer = asked.place
        case Admitted():
            answer = asked.refusal
    return msgspec.json.decode(encoded(answer))
