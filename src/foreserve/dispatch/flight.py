"""One request while it is with us: where it is, when what happened, and the outcome that follows from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from foreserve.core import Chunk, Finish, Outcome, OutcomeKind, Work
from foreserve.dispatch.stream import Stream
from foreserve.errors import BadRequest, EngineFailed, RequestError, UpstreamRefused
from foreserve.ports import Pick, Resumed, Room

MOST_ATTEMPTS = 2
"""A request is given to at most this many replicas."""

MOST_MEMORY_ATTEMPTS = 10
"""That many where it was not lost but ran out of memory together with others: it then runs with half as many of them
each time, so that from a batch of 512 the tenth attempt is alone."""

MOST_FED = 200_000
"""A growing input comes in at most so many parts; all are kept for an attempt that begins anew."""

MOST_MOVES = 3
"""A request is moved away from a replica that is to end at most so often, then that waits for it."""

Again = Literal["replica lost", "replica left", "out of memory", "server full", "server loading", "broken off"]
"""Why a request runs once more; see `Outcome.again`."""


class Flight:
    """The dispatcher's record of one request. It changes only through these methods."""

    def __init__(self, service: str, work: Work, stream: Stream) -> None:
        self.service = service
        self.asked = work
        """As it came; `work` is the present attempt."""
        self.work = work
        self.stream = stream
        self.predicted_s = 0.0
        """From arrival to end, as it was predicted when it came; 0 where nothing could be."""
        self.queued = False
        """Whether the batch policy has ever heard of it."""
        self.waits_since = work.arrival
        """When it joined the queue, the last time."""
        self.latest_start = 0.0
        """Until when it may wait there, in loop seconds."""
        self.ahead = 0
        self.before = 0
        self.beside: tuple[str, ...] = ()
        self.running = 0
        self.replica: str | None = None
        self.why = ""
        self.started: float | None = None
        self.first: float | None = None
        """When the first chunk that the caller may have seen arrived."""
        self.resumed = False
        """Whether the present attempt goes on where another was lost."""
        self.why_again = ""
        self.fed: list[tuple[Any, bool]] = []
        """What of a growing input has come so far: an attempt that begins anew is given all of it."""
        self.refused_since: float | None = None
        """When a server that was loading first refused it."""
        self._losses = 0
        self._crowded = 0
        self._moves = 0
        self._next_index = 0
        self._starts_before = 0
        self._queue_timer: asyncio.TimerHandle | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None

    def queue(self, waiting: int, starts: int, now: float) -> None:
        """It joins those that wait, after so many starts of others."""
        self.waits_since = now
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
        if self.started is None:
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

    @property
    def tried_enough(self) -> bool:
        """Whether no further replica is to be lost by it."""
        return self._losses + 1 >= MOST_ATTEMPTS

    def again(self, why: Again) -> bool:
        """Begin the next attempt: from the start, or after what has been delivered. `why`: what ended the last one.

        False, and nothing has happened, when it may not run again or cannot go on.
        """
        memory, moved, loading = why == "out of memory", why == "replica left", why == "server loading"
        if moved:
            enough = self._moves >= MOST_MOVES
        elif loading:
            enough = False  # whoever asks bounds it by time
        else:
            enough = self._crowded + 1 >= MOST_MEMORY_ATTEMPTS if memory else self.tried_enough
        if not self.work.idempotent or enough:
            return False
        if self.first is None:
            work, self.started = self.asked, None
            self.stream.restart()
        elif (resumed := self.stream.resume()) is not None:
            work, self.resumed = _the_rest(self.asked, resumed), True
        else:
            return False
        self._moves, self._crowded = self._moves + moved, self._crowded + memory
        self._losses += not (memory or moved or loading)
        self.work = msgspec.structs.replace(work, attempt=self.work.attempt + 1, crowded=self._crowded)
        self.why_again = f"{why}, resumed" if self.first is not None else why
        self.replica = None
        self._next_index = 0
        return True

    def wait(self, loop: asyncio.AbstractEventLoop, overdue: Callable[[Flight], None]) -> None:
        """Set the timer of its latest start, anew if it was set; a start cancels it."""
        if self._queue_timer is not None:
            self._queue_timer.cancel()
        self._queue_timer = loop.call_at(self.latest_start, overdue, self)

    def expire(self, loop: asyncio.AbstractEventLoop, expired: Callable[[Flight], None]) -> None:
        """Set the timer of the deadline, if it has one."""
        if self.work.deadline is not None:
            self._deadline_timer = loop.call_at(self.work.deadline, expired, self)

    def disarm(self) -> None:
        """Cancel the timers."""
        for timer in (self._queue_timer, self._deadline_timer):
            if timer is not None:
                timer.cancel()


def _the_rest(asked: Work, resumed: Resumed) -> Work:
    """What is left of a work after so many steps: its ramp begins higher, and less is foreseen of it."""
    steps, ramp, forecast = resumed.steps, asked.ramp, asked.forecast
    if ramp is not None:
        ramp = msgspec.structs.replace(ramp, base=ramp.base + steps, steps=max(ramp.steps - steps, 1))
    if forecast is not None:
        output = forecast.output
        mean, p50, p80, p95 = (max(n - steps, 1.0) for n in (output.mean, output.p50, output.p80, output.p95))
        share = min(mean / max(output.mean, 1.0), 1.0)
        forecast = msgspec.structs.replace(
            forecast,
            input_tokens=forecast.input_tokens + steps,
            output=msgspec.structs.replace(output, mean=mean, p50=p50, p80=p80, p95=p95),
            most_tokens=max(forecast.most_tokens - steps, 1),
            seconds=forecast.seconds * share,
            least_seconds=forecast.least_seconds * share,
        )
    return msgspec.structs.replace(asked, payload=resumed.payload, ramp=ramp, forecast=forecast)


def why_again(finish: Finish) -> Again:
    """Why an engine wants a request to be tried once more."""
    if finish.detail["retry"] == "memory":
        return "out of memory"
    if finish.detail["retry"] == "loading":
        return "server loading"
    return "server full" if "status" in finish.detail else "broken off"


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
    usage = flight.stream.usage()
    if finish is not None:
        # The engine that goes on with an answer counts what was delivered before as its prompt.
        usage = {**finish.usage, **usage} if flight.resumed else {**usage, **finish.usage}
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
        forecast=flight.asked.forecast,
        beside=flight.beside,
        running=flight.running,
        ahead=flight.ahead,
        before=flight.before,
        again=flight.why_again,
        usage=usage,
    )
