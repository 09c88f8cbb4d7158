"""Batches that were started: how long they take, and who was together when they come back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import msgspec

from foreserve.core import Outcome, OutcomeKind, Work
from foreserve.dispatch.batches import Batch, Member
from foreserve.foresight.batch_time import BatchShape, BatchTime
from foreserve.foresight.wma import Shape

MOST_REMEMBERED = 16_384
"""Started requests whose batch is remembered."""

Charge = tuple[str, float]
"""The account of a request's tenant, and the tokens that it was charged."""


class _Run(msgspec.Struct, eq=False):
    """One batch, as its requests end or come back."""

    shape: BatchShape
    at: float
    left: int
    whole: bool = True
    """Whether every answer so far ran to its end, so that the batch's time means something."""
    ended: float = 0.0
    actual: Shape = Shape(0, 1)


class Started:
    """Remembers the batches that run and teaches `times` how long they took."""

    def __init__(self, times: BatchTime) -> None:
        self._times = times
        self._runs: OrderedDict[str, tuple[_Run, Charge]] = OrderedDict()
        self._returned: dict[str, tuple[_Run | None, Work]] = {}

    def start(self, shape: BatchShape, charges: Mapping[str, Charge], now: float) -> None:
        """These requests run together from now on."""
        run = _Run(shape, now, len(charges))
        for request_id, charge in charges.items():
            self._runs[request_id] = (run, charge)
        while len(self._runs) > MOST_REMEMBERED:
            self._runs.popitem(last=False)

    def ended(self, outcome: Outcome) -> Charge | None:
        """A request has ended, and with the last of a batch so has that. What its tenant was charged, if it had run."""
        known = self._runs.pop(outcome.id, None)
        if known is None:
            return None
        run, charge = known
        run.left -= 1
        run.whole = run.whole and outcome.kind is OutcomeKind.DONE and outcome.attempt == 0
        run.ended = max(run.ended, outcome.ended)
        given, made = (int(outcome.usage.get(name, 0.0)) for name in ("prompt_tokens", "output_tokens"))
        run.actual = Shape(max(run.actual.input, given), max(run.actual.output, made))
        if run.left == 0 and run.whole:
            self._times.learn(run.shape, run.actual, run.ended - run.at, run.ended)
        return charge

    def came_back(self, work: Work) -> float:
        """A started request waits again: memory ran out, or its replica was lost. The tokens that it was charged."""
        run, charge = self._runs.pop(work.id, (None, ("", 0.0)))
        if run is not None:
            run.whole = False
        self._returned[work.id] = (run, work)
        return charge[1]

    def forget(self, request_id: str) -> None:
        """It waits no more. Unknown ids are ignored."""
        self._returned.pop(request_id, None)

    def halves(self, member: Callable[[Work], Member]) -> list[Batch]:
        """Batches of who came back since the last call: of those that were together, two halves."""
        together: dict[int, Batch] = {}
        for run, work in self._returned.values():
            together.setdefault(id(run) if run is not None else 0, Batch()).add(member(work))
        self._returned.clear()
        return [half for batch in together.values() for half in batch.split()]
