"""Whether to take a request in: a bounded queue, and no wait that is known to be in vain."""

from __future__ import annotations

from foreserve.core import Work
from foreserve.ports import QueueView, Refusal

LEAST_RETRY_S = 1.0
"""`Retry-After` is at least this, so that refused clients do not return in the same instant."""
MOST_RETRY_S = 60.0

MOST_OVER = 2
"""All tenants together have at most this many times `max_waiting` waiting: that is what bounds the queue's memory."""


def predicted_wait(view: QueueView) -> float:
    """Seconds until a request that joins the queue now would start: those ahead of it, at the pace of recent starts.

    Until that is known, by Little's law: as many side by side as run now. 0 while nothing has ended yet: a new service
    refuses nobody on a guess.

    Where the policy tells its order, tenants take turns: those ahead are its own tenant's, and as many of each other.
    """
    fair = view.waiting if view.ahead is None else (_own(view) + 1) * view.tenants - 1
    return _wait_of(min(fair, view.waiting), view)


def _wait_of(ahead: float, view: QueueView) -> float:
    """Seconds until so many have been started."""
    if not ahead or view.seconds_per_request is None:
        return 0.0
    if view.seconds_between_starts is not None:
        return ahead * view.seconds_between_starts
    return ahead * view.seconds_per_request / (view.running or view.slots or 1.0)


def _own(view: QueueView) -> int:
    return view.waiting if view.own is None else view.own


def predicted_total(work: Work, view: QueueView) -> float:
    """Seconds until a request that joins the queue now would be done: predicted wait and its time on a replica.

    That is what is foreseen of it, or the mean of late; of one that has not been priced yet, the least it could be.
    """
    if view.seconds_per_request is None:
        return view.cold_s
    if work.forecast is not None:
        seconds = work.forecast.seconds
    elif work.cost:
        seconds = view.seconds_per_request
    else:
        seconds = view.least_seconds
    return view.cold_s + predicted_wait(view) + seconds


class Bounded:
    """`bounded`: refuse when the queue is full, or when the wait would outlast `max_wait_s` or the deadline.

    A deadline must leave room for the time on the replica as well, and for what comes behind it in its pipeline,
    stretched by how wrong such predictions were of late: under overload the queue stands at the limit of what is
    admitted, and with plain means every second request there would be begun in vain.

    The queue is full, here and in the others, for a tenant with its share of `max_waiting` or more (all of it, over the
    number of tenants that wait) once `max_waiting` wait; and for everybody once twice as many do. So one tenant's flood
    leaves the door open to the others.
    """

    def __init__(self, max_waiting: int, max_wait_s: float) -> None:
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s

    def admit(self, work: Work, view: QueueView, now: float) -> Refusal | None:
        wait = predicted_wait(view)
        if _is_full(view, self._max_waiting):
            return _full(view, self._max_waiting)
        if wait > self._max_wait_s:
            return _too_long(wait, self._max_wait_s)
        if work.deadline is not None and (view.waiting or view.cold_s):
            needed = (predicted_total(work, view) + work.after_s) * view.stretch
            left = work.deadline - now
            if needed > left:
                wait += view.cold_s
                return _too_late(wait, needed - wait, left, work.after_s)
        return None


class Foreseen:
    """`foreseen`: as `bounded`, by the request's own forecast and its place in the policy's order.

    The wait is that of those ahead of it there, at the pace of recent starts; then its own expected time, not that of
    all. Who comes later and overtakes it is not foreseen.

    Before a request is priced its place is not known. So that refusing stays cheap under a flood, it is then refused
    where the last place would be too late.
    """

    def __init__(self, max_waiting: int, max_wait_s: float) -> None:
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s

    def admit(self, work: Work, view: QueueView, now: float) -> Refusal | None:
        if _is_full(view, self._max_waiting):
            return _full(view, self._max_waiting)
        if not view.waiting and not view.cold_s:
            return None
        wait = _wait_of(view.waiting if view.ahead is None else min(view.ahead, view.waiting), view)
        if wait > self._max_wait_s:
            return _too_long(wait, self._max_wait_s)
        # A new service refuses nobody on a guess, but how long a start takes is measured.
        if work.deadline is None or (view.seconds_per_request is None and not view.cold_s):
            return None
        wait += view.cold_s
        left = work.deadline - now
        if work.forecast is not None:
            seconds = work.forecast.seconds + work.after_s
        elif work.cost and not work.after_s:
            return None
        else:
            seconds = view.least_seconds + work.after_s
        return None if wait + seconds <= left else _too_late(wait, seconds, left, work.after_s)


class Patient:
    """`patient`: refuse only when the queue is full; who cannot be served by its deadline expires in the queue.

    For policies that do not go by arrival. What `bounded` predicts is the wait of who comes last in a queue by arrival:
    it refuses short requests that would be started next, and leaves so few waiting that there is nothing to order.
    """

    def __init__(self, max_waiting: int, max_wait_s: float) -> None:
        """The queue itself ends who waits longer than `max_wait_s`."""
        self._max_waiting = max_waiting

    def admit(self, work: Work, view: QueueView, now: float) -> Refusal | None:
        return _full(view, self._max_waiting) if _is_full(view, self._max_waiting) else None


class Always:
    """`always`: take everything; only for servers in front of which nothing may be refused (`--observe`)."""

    def __init__(self, max_waiting: int, max_wait_s: float) -> None:
        """The queue's settings are taken and not used."""

    def admit(self, work: Work, view: QueueView, now: float) -> Refusal | None:
        return None


def _is_full(view: QueueView, limit: int) -> bool:
    """Whether `limit` or more wait, and its tenant has its share of them or nobody else may come either."""
    if view.waiting < limit:
        return False
    return _own(view) >= limit / view.tenants or view.waiting >= MOST_OVER * limit


def _full(view: QueueView, limit: int) -> Refusal:
    words = f"the queue is full: {view.waiting} requests wait (limit {limit})"
    if view.tenants > 1:
        words += f", {_own(view)} of them its tenant's"
    return _refuse(words, predicted_wait(view))


def _too_long(wait: float, limit: float) -> Refusal:
    return _refuse(f"the predicted wait of {wait:.1f} s exceeds the limit of {limit:g} s", wait - limit)


def _too_late(wait: float, work: float, left: float, after: float) -> Refusal:
    behind = f", {after:.1f} s of them in the stages behind it," if after else ""
    words = f"{wait:.1f} s predicted wait and {work:.1f} s of work{behind} exceed its deadline in {left:.1f} s"
    return _refuse(words, wait + work - left)


def _refuse(reason: str, retry_after: float) -> Refusal:
    return Refusal(reason=reason, retry_after=min(max(retry_after, LEAST_RETRY_S), MOST_RETRY_S))
