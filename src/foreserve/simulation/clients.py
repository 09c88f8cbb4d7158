"""Clients that do more than ask: some leave before their answer is complete, some come again when they were refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from numpy.random import Generator  # noqa: TID251 - the type of the generator that is passed in

from foreserve.core import Outcome, OutcomeKind, Request
from foreserve.dispatch.early import RETRY_S
from foreserve.dispatch.stream import Stream
from foreserve.simulation.drive import Drive
from foreserve.simulation.fault_kinds import ClientCancel, ClientRetry
from foreserve.simulation.twin import Twin
from foreserve.traces.row import TraceRow

AGAIN = (OutcomeKind.SHED, OutcomeKind.FAILED)
"""How a request ends that its client may send once more: with a 429, a 500 or a 503."""

Note = Callable[[str, str], None]
"""`note(to, what)`: something has happened to a request."""


def first_of(request_id: str) -> str:
    """The request of which this one is another try: `r7` of `r7.2`. A client's tries are linked by their ids."""
    return request_id.partition(".")[0]


def is_retry(request_id: str) -> bool:
    """Whether it is another try of a request that came before."""
    return "." in request_id


class Leaving:
    """A share of the clients leaves after a random time, from its start or from the first token that it got."""

    def __init__(self, fault: ClientCancel, rng: Generator, note: Note) -> None:
        self._fault = fault
        self._rng = rng
        self._note = note
        self._after_first: dict[str, tuple[Stream, float]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def asked(self, request: Request, row: TraceRow, stream: Stream) -> None:
        """See `Clients`."""
        leaves, late, patience = self._rng.random(), self._rng.random(), self._rng.exponential(self._fault.patience_s)
        if leaves >= self._fault.share or stream.outcome is not None:
            return
        stream.when_ended(self._ended)
        if late < self._fault.after_first:
            self._after_first[request.id] = (stream, patience)
        else:
            self._leave_later(stream, patience)

    def heard_first(self, request_id: str) -> None:
        """Told by the twin."""
        stream, patience = self._after_first.pop(request_id, (None, 0.0))
        if stream is not None:
            self._leave_later(stream, patience)

    def _leave_later(self, stream: Stream, patience: float) -> None:
        self._timers[stream.id] = asyncio.get_running_loop().call_later(patience, self._leave, stream)

    def _leave(self, stream: Stream) -> None:
        self._note(stream.id, "its client left")
        stream.close()

    def _ended(self, outcome: Outcome) -> None:
        self._after_first.pop(outcome.id, None)
        timer = self._timers.pop(outcome.id, None)
        if timer is not None:
            timer.cancel()

    def __len__(self) -> int:
        """Those who will leave and have not yet."""
        return len(self._timers) + len(self._after_first)


class Retrying:
    """A share of the clients whose request was shed or failed sends it again under a new id, a bounded number of times.

    Each try is a request of its own to the ledger, with a deadline of its own.
    """

    def __init__(self, fault: ClientRetry, rng: Generator, note: Note, drive: Drive) -> None:
        self._fault = fault
        self._rng = rng
        self._note = note
        self._drive = drive

    def asked(self, request: Request, row: TraceRow, stream: Stream) -> None:
        """See `Clients`."""
        stream.when_ended(lambda outcome: self._ended(outcome, request, row))

    def _ended(self, outcome: Outcome, request: Request, row: TraceRow) -> None:
        if outcome.kind not in AGAIN:
            return
        first, _, tried = request.id.partition(".")
        tries = int(tried or 0)
        if tries >= self._fault.most or self._rng.random() >= self._fault.share:
            return
        wait = max(outcome.retry_after or RETRY_S, self._fault.backoff_s * 2.0**tries)
        wait *= 1.0 + 0.25 * self._rng.random()
        again = f"{first}.{tries + 1}"
        self._note(request.id, f"its client comes again in {wait:.1f} s as {again}")
        self._drive.comes_again(row, request, again, wait)


class Crowd:
    """Several such habits at once: what `Drive.clients` is."""

    def __init__(self, twins: dict[str, Twin]) -> None:
        self._twins = twins
        self._habits: list[Leaving | Retrying] = []

    def take_up(self, habit: Leaving | Retrying) -> None:
        """One habit more. Only one may want to hear of first tokens."""
        self._habits.append(habit)
        if isinstance(habit, Leaving):
            for twin in self._twins.values():
                twin.heard_first = habit.heard_first

    def __len__(self) -> int:
        return len(self._habits)

    def asked(self, request: Request, row: TraceRow, stream: Stream) -> None:
        """See `Clients`."""
        for habit in self._habits:
            habit.asked(request, row, stream)
