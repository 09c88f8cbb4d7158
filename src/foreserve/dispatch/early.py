"""Why a request ends without its engine having ended it, in words: refused, too late, left, or lost."""

from __future__ import annotations

from foreserve.core import Outcome, OutcomeKind
from foreserve.dispatch.admission import predicted_total
from foreserve.dispatch.flight import Flight, verdict
from foreserve.errors import ClientGone, EngineFailed, Expired, ReplicaLost, Shed, TooLarge, Unavailable
from foreserve.ports import Admission, QueueView

RETRY_S = 1.0
"""When to come again, where nothing better is known."""


def refused(flight: Flight, view: QueueView, admission: Admission, now: float) -> Outcome | None:
    """The outcome of a request that is not taken in; `None` when it is. Notes what is predicted of it."""
    if flight.work.deadline is not None and flight.work.deadline <= now:
        return verdict(flight, OutcomeKind.EXPIRED, Expired, "its deadline had passed", now)
    flight.predicted_s = predicted_total(flight.work, view)
    refusal = admission.admit(flight.work, view, now)
    if refusal is not None:
        return verdict(flight, OutcomeKind.SHED, Shed, refusal.reason, now, retry=refusal.retry_after)
    return None


def unavailable(flight: Flight, reason: str, now: float, retry_s: float = RETRY_S) -> Outcome:
    """Nothing can be served for now; perhaps in `retry_s`."""
    return verdict(flight, OutcomeKind.FAILED, Unavailable, reason, now, retry=retry_s)


def not_begun(flight: Flight, why: str | None, limit_s: float, *, cold: bool, now: float) -> Outcome | None:
    """The outcome of one that waited for a first replica, for at most `limit_s`; `None` when there is one.

    `why` nothing can be served; `cold`: there is no replica still.
    """
    if why is not None:
        return unavailable(flight, why, now)
    if flight.work.deadline is not None and now >= flight.work.deadline:
        return expired(flight, waiting=True, now=now)
    return unavailable(flight, f"no replica was ready for {limit_s:g} s", now) if cold else None


def overdue(flight: Flight, most_s: float, waited: float, *, replicas: bool, now: float) -> Outcome:
    """It has waited as long as it may, or too long to be done by its deadline: no replica shall begin it.

    `waited` is how much of `most_s` is over.
    """
    if waited < most_s and flight.work.deadline is not None:
        words = f"after {now - flight.waits_since:.1f} s in the queue it could no longer be done by its deadline"
        return verdict(flight, OutcomeKind.EXPIRED, Expired, words, now, retry=RETRY_S)
    if not replicas:
        return unavailable(flight, f"no replica was ready for {most_s:g} s", now)
    words = f"it waited {most_s:g} s, the most that the queue allows"
    return verdict(flight, OutcomeKind.SHED, Shed, words, now, retry=RETRY_S)


def expired(flight: Flight, *, waiting: bool, now: float) -> Outcome:
    """Its deadline has passed."""
    where = "in the queue" if waiting else "while it ran"
    return verdict(flight, OutcomeKind.EXPIRED, Expired, f"its deadline passed {where}", now, retry=RETRY_S)


def left(flight: Flight, reason: str, now: float) -> Outcome:
    """Its caller wants no more of it."""
    return verdict(flight, OutcomeKind.CANCELLED, ClientGone, reason, now)


def overfed(flight: Flight, most: int, now: float) -> Outcome:
    """Its input has grown beyond what is kept of one."""
    words = f"its input came in more than {most:,} parts, the most that one call is fed; hand on fewer and larger ones"
    return verdict(flight, OutcomeKind.FAILED, TooLarge, words, now)


def unreadable(flight: Flight, error: Exception, now: float) -> Outcome:
    """Its answer is none that its kind can read."""
    words = f"its answer cannot be read: {error}"
    return verdict(flight, OutcomeKind.FAILED, EngineFailed, words, now, retry=RETRY_S)


def lost(flight: Flight, replica: str, reason: str, now: float) -> Outcome:
    """Its replica is gone, and it does not run again."""
    if not flight.work.idempotent:
        why = "while it ran, and it may have had effects"
    elif flight.tried_enough:
        why = f"under its attempt {flight.work.attempt + 1} too"
    else:
        why = "after part of the answer had been sent, and it cannot be continued"
    words = f"replica {replica} was lost {why}: {reason}"
    return verdict(flight, OutcomeKind.FAILED, ReplicaLost, words, now)
