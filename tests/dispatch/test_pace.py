import pytest

from foreserve.core import Outcome, OutcomeKind
from foreserve.dispatch.pace import Pace


def outcome(seconds: float, kind: OutcomeKind = OutcomeKind.DONE, started: float | None = 1.0) -> Outcome:
    return Outcome(id="a", service="s", kind=kind, arrival=0.0, started=started, ended=1.0 + seconds)


def test_means_follow_what_is_done():
    pace = Pace()
    assert pace.seconds is None
    for _ in range(200):
        pace.settled(outcome(1.0))
        pace.settled(outcome(3.0))
    assert pace.seconds == pytest.approx(2.0, abs=0.2)
    assert pace.deviation == pytest.approx(1.0, abs=0.2)


def test_what_expired_counts_only_where_it_took_longer():
    pace = Pace()
    pace.settled(outcome(2.0))
    pace.settled(outcome(1.0, OutcomeKind.EXPIRED))
    assert pace.seconds == 2.0
    pace.settled(outcome(4.0, OutcomeKind.EXPIRED))
    assert pace.seconds == pytest.approx(2.2)


def test_what_never_ran_teaches_nothing():
    pace = Pace()
    pace.settled(outcome(5.0, OutcomeKind.SHED, started=None))
    pace.settled(outcome(5.0, OutcomeKind.FAILED))
    pace.settled(outcome(5.0, OutcomeKind.EXPIRED))
    assert pace.seconds is None
