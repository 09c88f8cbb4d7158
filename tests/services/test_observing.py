from __future__ import annotations

from foreserve.core import Outcome, OutcomeKind, Work
from foreserve.dispatch.admission import Bounded
from foreserve.services.observing import Observer


def work(name: str, arrival: float, deadline: float | None = None) -> Work:
    return Work(id=name, payload=None, cost={"slots": 1.0}, arrival=arrival, deadline=deadline)


def done(name: str, started: float, ended: float, kind: OutcomeKind = OutcomeKind.DONE) -> Outcome:
    return Outcome(id=name, service="s", kind=kind, arrival=started, started=started, ended=ended)


def test_who_would_have_waited_and_who_would_have_been_refused() -> None:
    observer = Observer(Bounded(max_waiting=1, max_wait_s=30.0), slots=2)
    assert observer.arrived(work("warm", 0), 0).wait_s == 0
    observer.ended(done("warm", 0, 4))
    verdicts = [observer.arrived(work(str(n), 10), 10) for n in range(4)]
    assert [verdict.wait_s for verdict in verdicts[:3]] == [0, 0, 2.0]
    assert [verdict.shed is None for verdict in verdicts] == [True, True, True, False]
    assert "queue is full" in (verdicts[3].shed or "")
    report = observer.report()
    assert (report.requests, report.at_once, report.waited, report.shed) == (5, 3, 1, 1)
    assert (report.wait_mean_s, report.wait_max_s, report.in_flight, report.in_flight_max) == (2.0, 2.0, 4, 3)


def test_the_refused_take_no_place_and_every_end_gives_one_back() -> None:
    observer = Observer(Bounded(max_waiting=1, max_wait_s=30.0), slots=1)
    for n in range(4):
        observer.arrived(work(str(n), 0), 0)
    for n, kind in enumerate(OutcomeKind):
        observer.ended(done(str(n), 0, 1, kind))
        observer.ended(done(str(n), 0, 1, kind))
    observer.ended(done("unknown", 0, 1))
    assert observer.report().in_flight == 0
    assert observer.arrived(work("next", 9), 9).wait_s == 0


def test_a_deadline_that_could_not_be_met() -> None:
    observer = Observer(Bounded(max_waiting=10, max_wait_s=30.0), slots=1)
    observer.arrived(work("warm", 0), 0)
    observer.ended(done("warm", 0, 5))
    for n in range(2):
        observer.arrived(work(str(n), 10), 10)
    assert "deadline" in (observer.arrived(work("late", 10, deadline=12), 10).shed or "")


def test_a_wait_that_nothing_can_tell_yet_is_not_called_none() -> None:
    observer = Observer(Bounded(max_waiting=9, max_wait_s=30.0), slots=1)
    assert observer.arrived(work("a", 0), 0).wait_s == 0
    assert observer.arrived(work("b", 0), 0).wait_s is None
    report = observer.report()
    assert (report.at_once, report.waited, report.wait_mean_s) == (1, 1, 0.0)
