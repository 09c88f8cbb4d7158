"""One request while it is with us: where it is, when what happened, and the outcome that follows from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from foreserve.core import Chunk, Finish, Outcome, OutcomeKind, Work
from foreserve.dispatch.stream import Stream
from foreserve.errors import BadRequest, EngineFailed, RequestError, UpstreamRefused
from foreserve.ports import Pick, Room


class Flight:
    """The dispatcher's record of one request. It changes only through these methods."""

    def __init__(self, service: str, work: Work, stream: Stream) -> None:
        self.service = service
        self.work = work
        self.stream = stream
        self.predicted_s = 0.0
        """From arrival to end, as it was predicted when it came; 0 where nothing could be."""
        self.queued = False
        """Whether the batch policy has ever heard of it."""
        self.ahead = 0
        self.before = 0
        self.beside: tuple[str, ...] = ()
        self.running = 0
        self.replica: str | None = None
        self.why = ""
        self.started: float | None = None
        self.first: float | None = None
        """When the first chunk that the caller may have seen arrived."""
        self._next_index = 0
        self._starts_before = 0
        self._queue_timer: asyncio.TimerHandle | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None

    def queue(self, waiting: int, starts: int) -> None:
        """It joins those that wait, after so many starts of others."""
        if not self.queued:
            self.queued = True
            self.ahead = waiting
        self._starts_before = starts - self.before

    def start(self, room: Room, pick: Pick, starts: int, now: float) -> None:
        """It was given to a replica, after so many starts of others."""
        if self._queue_timer is not None:
            self._queue_timer.cancel()
        self.before = starts - self._starts_before
        self.beside = tuple(other for other in pick.ids if other != self.work.id)
        self.running = room.running
        self.replica = room.replica
        self.why = pick.why
        self.started = now

    def expects(self, replica: str, chunk: Chunk) -> bool:
        """Whether `chunk` is the next of the present attempt, and not a late or repeated one."""
        return self.replica == replica and self.work.attempt == chunk.attempt and self._next_index == chunk.index

    def accept(self, chunk: Chunk, now: float) -> bool:
        """Pass a chunk on. True when the caller wants no more."""
        self._next_index += 1
        if self.first is None and chunk.data is not None:
            self.first = now
        return self.stream.put(chunk)

    def again(self) -> None:
        """Begin the next attempt from the start."""
        self.work = msgspec.structs.replace(self.work, attempt=self.work.attempt + 1)
        self.replica = None
        self.started = None
        self._next_index = 0
        self.stream.restart()

    def wait(self, loop: asyncio.AbstractEventLoop, latest: float, overdue: Callable[[Flight], None]) -> None:
        """Set the timer of its latest start (loop seconds), which a start cancels."""
        self._queue_timer = loop.call_at(latest, overdue, self)

    def expire(self, loop: asyncio.AbstractEventLoop, expired: Callable[[Flight], None]) -> None:
        """Set the timer of the deadline, if it has one."""
        if self.work.deadline is not None:
            self._deadline_timer = loop.call_at(self.work.deadline, expired, self)

    def disarm(self) -> None:
        """Cancel the timers."""
        for timer in (self._queue_timer, self._deadline_timer):
            if timer is not None:
                timer.cancel()


def ended(flight: Flight, finish: Finish, now: float) -> Outcome:
    """The outcome of a request that its engine ended, or whose caller had enough of."""
    words = finish.error or finish.reason
    match finish.reason:
        case "stop" | "length":
            return _outcome(flight, OutcomeKind.DONE, now, finish=finish)
        case "cancelled":
            return _outcome(flight, OutcomeKind.CANCELLED, now, finish=finish, code="client_gone", reason=words)
        case _ if isinstance(finish.detail, dict) and "status" in finish.detail:
            return _outcome(flight, OutcomeKind.FAILED, now, finish=finish, code=UpstreamRefused.code, reason=words)
        case "rejected":
            return _outcome(flight, OutcomeKind.FAILED, now, finish=finish, code=BadRequest.code, reason=words)
        case "error":
            return _outcome(flight, OutcomeKind.FAILED, now, finish=finish, code=EngineFailed.code, reason=words)


def verdict(
    flight: Flight,
    kind: OutcomeKind,
    error: type[RequestError],
    reason: str,
    now: float,
    retry: float | None = None,
) -> Outcome:
    """The outcome of a request that we ended."""
    return _outcome(flight, kind, now, code=error.code, reason=reason, retry_after=retry)


def _outcome(
    flight: Flight,
    kind: OutcomeKind,
    now: float,
    *,
    finish: Finish | None = None,
    code: str = "",
    reason: str = "",
    retry_after: float | None = None,
) -> Outcome:
    work = flight.work
    return Outcome(
        id=work.id,
        service=flight.service,
        kind=kind,
        arrival=work.arrival,
        ended=now,
        started=flight.started,
        first=flight.first,
        finish=finish.reason if finish else None,
        code=code,
        reason=reason,
        retry_after=retry_after,
        detail=finish.detail if finish else None,
        tenant=work.tenant,
        parent=work.parent,
        replica=flight.replica,
        attempt=work.attempt,
        why=flight.why,
        cost=work.cost,
        forecast=work.forecast,
        beside=flight.beside,
        running=flight.running,
        ahead=flight.ahead,
        before=flight.before,
        usage={**flight.stream.usage(), **finish.usage} if finish else flight.stream.usage(),
    )
