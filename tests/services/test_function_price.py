"""What a call is expected to take: nothing before any was done, then by the batches of late."""

from __future__ import annotations

import pytest

from foreserve.core import Forecast, Outcome, OutcomeKind, Request, Work
from foreserve.services.function import Function
from foreserve.services.workload import foreseen_of


def done(seconds: float, beside: int = 0, kind: OutcomeKind = OutcomeKind.DONE) -> Outcome:
    others = tuple(str(n) for n in range(beside))
    return Outcome(id="a", service="s", kind=kind, arrival=0.0, started=1.0, ended=1.0 + seconds, beside=others)


def forecast(kind: Function) -> Forecast | None:
    return kind.price(Request(id="a", service="s", payload=None, arrival=0.0)).forecast


def test_nothing_is_foreseen_before_a_call_was_done():
    kind = Function("json:dumps")
    kind.settled(done(9.0, kind=OutcomeKind.FAILED))
    assert forecast(kind) is None


def test_calls_alone_take_what_they_took():
    kind = Function("json:dumps")
    for _ in range(5):
        kind.settled(done(0.25))
    found = forecast(kind)
    assert found is not None
    assert (found.seconds, found.least_seconds, found.most_tokens) == (pytest.approx(0.25), pytest.approx(0.25), 0)
    work = Work(id="a", payload=None, cost={}, arrival=0.0, forecast=found)
    assert foreseen_of(work) == {"seconds": pytest.approx(0.25)}


def test_a_call_is_expected_in_a_batch_as_large_as_those_of_late():
    kind = Function("json:dumps", batch=8)
    kind.settled(done(0.1))
    for _ in range(200):
        kind.settled(done(0.4, beside=7))
    found = forecast(kind)
    assert found is not None
    assert found.seconds == pytest.approx(0.4)
    assert found.least_seconds == pytest.approx(0.1)
