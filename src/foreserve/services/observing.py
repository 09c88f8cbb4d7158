"""What would have been done: the queue and its limits, kept on paper while everything is forwarded at once."""

from __future__ import annotations

import msgspec

from foreserve.core import Outcome, OutcomeKind, Work
from foreserve.dispatch.admission import predicted_wait
from foreserve.ports import Admission, QueueView


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What would have become of a request: served at once (`wait_s` of 0), after a wait, or refused (`shed`, in words).

    `wait_s` is `None` where it would have waited and nothing has ended yet that could tell how long.
    """

    wait_s: float | None
    shed: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Totals since the start. `wait_mean_s` is over those whose wait could be predicted."""

    requests: int
    at_once: int
    waited: int
    shed: int
    wait_mean_s: float
    wait_max_s: float
    seconds_per_request: float | None
    in_flight: int
    in_flight_max: int
    slots: int


class Observer:
    """Judges each request as the dispatcher would have, had it held back what exceeds `slots`.

    Pure: it is told of arrivals and ends. Its queue is the number in flight beyond the slots, so it assumes that a
    server works no faster on fewer requests at once, and a real queue would be somewhat shorter than it says.
    """

    def __init__(self, admission: Admission, slots: int) -> None:
        self._admission = admission
        self._slots = slots
        self._verdicts: dict[str, Verdict] = {}
        self._in_flight = 0
        self._most = 0
        self._ended: float | None = None
        self._totals = {"at_once": 0, "waited": 0, "shed": 0}
        self._wait_sum = self._wait_max = 0.0
        self._predicted = 0

    def arrived(self, work: Work, now: float) -> Verdict:
        """Judge a request. `ended` must be called for each."""
        view = QueueView(
            waiting=max(0, self._in_flight - self._slots),
            running=min(self._in_flight, self._slots),
            slots=float(self._slots),
            seconds_per_request=self._ended,
        )
        refusal = self._admission.admit(work, view, now) if self._in_flight >= self._slots else None
        if refusal is not None:
            verdict = Verdict(wait_s=predicted_wait(view), shed=refusal.reason)
            self._totals["shed"] += 1
        elif self._in_flight >= self._slots:
            # It would join the queue, so it waits for those ahead of it and for the first slot to come free.
            self._totals["waited"] += 1
            wait_s: float | None = None
            if self._ended is not None:
                wait_s = predicted_wait(msgspec.structs.replace(view, waiting=view.waiting + 1))
                self._predicted += 1
                self._wait_sum += wait_s
                self._wait_max = max(self._wait_max, wait_s)
            verdict = Verdict(wait_s=wait_s)
        else:
            verdict = Verdict(wait_s=0.0)
            self._totals["at_once"] += 1
        self._verdicts[work.id] = verdict
        if verdict.shed is None:
            self._in_flight += 1
            self._most = max(self._most, self._in_flight)
        return verdict

    def ended(self, outcome: Outcome) -> None:
        """Learn how a request that had arrived has ended. Unknown ids are ignored."""
        verdict = self._verdicts.pop(outcome.id, None)
        if verdict is None:
            return
        if verdict.shed is None:
            self._in_flight -= 1
        if outcome.kind is OutcomeKind.DONE and outcome.started is not None:
            taken = outcome.ended - outcome.started
            self._ended = taken if self._ended is None else self._ended + 0.1 * (taken - self._ended)

    def report(self) -> Report:
        """The totals so far."""
        return Report(
            requests=sum(self._totals.values()),
            **self._totals,
            wait_mean_s=self._wait_sum / self._predicted if self._predicted else 0.0,
            wait_max_s=self._wait_max,
            seconds_per_request=self._ended,
            in_flight=len(self._verdicts),
            in_flight_max=self._most,
            slots=self._slots,
        )
