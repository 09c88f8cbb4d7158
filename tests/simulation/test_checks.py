"""Every check finds what it is there for: parts that break a rule, one at a time, are put into a simulation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from foreserve import running as running_module
from foreserve import wiring
from foreserve.core import Outcome, Work
from foreserve.dispatch.admission import Always
from foreserve.dispatch.batching import FirstCome
from foreserve.dispatch.dispatcher import Dispatcher
from foreserve.dispatch.flight import Flight
from foreserve.dispatch.ledger import Ledger
from foreserve.engines.simulated_core import SimulatedCore
from foreserve.fleet.replica import Replica
from foreserve.fleet.replicas import Replicas
from foreserve.ports import Pick, Room, Wait
from foreserve.simulation import checks, fault_acts
from foreserve.simulation.checks import Checks, reachable
from foreserve.simulation.oracle import Oracle
from foreserve.simulation.trial import Trial
from foreserve.traces.row import TraceRow
from tests.simulation.trials import trial


class Hoards(FirstCome):
    """Remembers all that it has ever seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Work] = []

    def add(self, work: Work, now: float) -> None:
        super().add(work, now)
        self.seen.append(work)


class Unfair(FirstCome):
    """Never runs the first tenant's."""

    def add(self, work: Work, now: float) -> None:
        if work.tenant != "t0":
            super().add(work, now)


class Sleepy(FirstCome):
    """Starts nothing but once in twelve seconds."""

    def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
        return super().pick(rooms, now) if now % 14.0 > 13.0 else Wait(until=now - now % 14.0 + 13.5)


class Fails(FirstCome):
    """Raises now and then."""

    def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
        if now > 5.0 and not hasattr(self, "failed"):
            self.failed = True
            raise ValueError("a policy that fails")
        return super().pick(rooms, now)


def found(faults: str = "", **settings: Any) -> set[str]:
    shown: Trial = trial(faults, **settings)
    return {finding.check for finding in shown.findings}


@pytest.mark.parametrize(
    ("policy", "check"), [(Hoards, "left"), (Unfair, "tenant"), (Sleepy, "idle"), (Fails, "logged")]
)
def test_a_policy_that_breaks_a_rule(monkeypatch: pytest.MonkeyPatch, policy: Callable[[], Any], check: str):
    monkeypatch.setattr(wiring, "make_policy", lambda *_: policy())
    assert check in found(per_s=2.0, queue={"max_waiting": 200, "max_wait_s": 25.0})


def test_a_queue_without_its_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wiring, "make_admission", lambda *_: Always(1, 1.0))
    assert found(per_s=50.0, policy="fcfs", queue={"max_waiting": 4, "max_wait_s": 100.0}) == {"queue"}


def test_who_waits_beyond_the_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Dispatcher, "_overdue", lambda self, flight: None)
    queue = {"max_waiting": 200, "max_wait_s": 1.0, "admission": "always"}
    assert "waited" in found(per_s=50.0, policy="fcfs", queue=queue)


def test_who_outlives_its_deadline(monkeypatch: pytest.MonkeyPatch):
    terms = {"policy": "fcfs", "deadline_s": 2.0, "queue": {"max_waiting": 200, "max_wait_s": 25.0}}
    assert not found(**terms)
    monkeypatch.setattr(Flight, "expire", lambda self, loop, expired: None)
    assert found(**terms) == {"deadline"}


def test_what_has_ended_is_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch):
    made: list[Checks] = []
    begin = Checks.begin

    def begun(self: Checks) -> None:
        made.append(self)
        begin(self)

    monkeypatch.setattr(Checks, "begin", begun)
    monkeypatch.setattr(checks, "MOST_ENDED", 20)
    assert not found(count=100)
    assert len(made[0]._ended) == 20


def test_a_replica_that_is_given_too_much(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Replica, "capacity", lambda self: {"slots": 2.0})
    assert found(per_s=30.0, policy="fcfs") == {"room"}


def test_an_end_that_is_told_twice(monkeypatch: pytest.MonkeyPatch):
    end = Ledger.end
    told: list[Outcome] = []

    def twice(self: Ledger, outcome: Outcome) -> None:
        end(self, outcome)
        told.append(outcome)

    monkeypatch.setattr(Ledger, "end", twice)
    settled = running_module.Running._settled

    def again(self: running_module.Running, outcome: Outcome) -> None:
        settled(self, outcome)
        if len(told) == 10:
            told.append(outcome)
            settled(self, outcome)

    monkeypatch.setattr(running_module.Running, "_settled", again)
    assert "once" in found()


def test_a_request_that_never_ends(monkeypatch: pytest.MonkeyPatch):
    chunks = Dispatcher.chunks

    def deaf(self: Dispatcher, runner: Any, given: Any) -> None:
        chunks(self, runner, [chunk for chunk in given if chunk.id != "r50"])

    monkeypatch.setattr(Dispatcher, "chunks", deaf)
    assert {"hung", "once", "ledger"} <= found(count=60)


def test_a_replica_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Replicas, "_replace", lambda self, seat, lost: None)
    assert "settled" in found("worker_death:every_s=20")


def test_an_engine_that_forgets_to_end_what_was_aborted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SimulatedCore, "cancel", lambda self, request_id, now: [])
    monkeypatch.setattr(SimulatedCore, "run", _endless(SimulatedCore.run))
    assert "settled" in found("client_cancel:share=1;patience_s=0.1", count=4, per_s=1.0)


def _endless(run: Any) -> Any:
    def started(self: SimulatedCore, works: Sequence[Work], now: float) -> Any:
        self.slow(1e6, now)
        return run(self, works, now)

    return started


def test_a_clock_that_goes_back(monkeypatch: pytest.MonkeyPatch):
    settled = running_module.Running._settled

    def late(self: running_module.Running, outcome: Outcome) -> None:
        wrong = outcome.id == "r20"
        settled(self, type(outcome)(**{**as_dict(outcome), "first": 0.0}) if wrong else outcome)

    monkeypatch.setattr(running_module.Running, "_settled", late)
    assert found(per_s=2.0) == {"clock"}


def as_dict(outcome: Outcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in outcome.__struct_fields__}


def test_an_oracle_that_keeps_what_has_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Oracle, "forget", lambda self, request_id: None)
    assert found(per_s=2.0) == {"left"}


def test_tasks_and_timers_that_stay(monkeypatch: pytest.MonkeyPatch):
    stop = running_module.Running.stop

    async def careless(self: running_module.Running, drain_s: float | None = None) -> None:
        await stop(self, drain_s)
        asyncio.get_running_loop().call_later(5.0, print)
        self.kept = asyncio.create_task(asyncio.sleep(9.0), name="kept")  # type: ignore[attr-defined]

    monkeypatch.setattr(running_module.Running, "stop", careless)
    shown = trial("", count=20)
    words = " ".join(finding.words for finding in shown.findings)
    assert "a timer is still set" in words
    assert "a task still runs: kept" in words


def test_what_a_callback_raises(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fault_acts, "_kill", _broken)
    assert found("worker_death:every_s=10") == {"raised"}


def _broken(*_: Any) -> None:
    raise RuntimeError("a callback that fails")


def test_reachable_goes_through_structs_closures_and_methods_but_not_through_globals():
    row = TraceRow(arrival=1.0, prefix=(12345,))  # made without the collector

    def closure() -> Any:
        return row

    assert list(reachable([closure], (TraceRow,))) == [row]
    assert 12345 in list(reachable({"a": [closure]}, (int,)))
    assert not list(reachable(as_dict, (TraceRow, dict)))
