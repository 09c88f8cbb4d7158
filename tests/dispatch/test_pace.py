import pytest

from foreserve.core import Outcome, OutcomeKind
from foreserve.dispatch.pace import Pace


def outcome(seconds: float, kind: OutcomeKind = OutcomeKind.DONE, started: float | None = 1.0) -> Outcome:
    return Outcome(id="a", service="s", kind=kind, arrival=0.0, started=started, ended=1.0 + seconds)


def test_means_follow_what_is_done():
    pace = Pace()
    assert pace.service.value is None
    assert pace.least_service() == 0.0
    for _ in range(200):
        pace.settled(outcome(3.0), 0.0)
        pace.settled(outcome(5.0), 0.0)
    assert pace.service.value == pytest.approx(4.0, abs=0.2)
    assert pace.service.deviation == pytest.approx(1.0, abs=0.2)
    assert pace.least_service() == pytest.approx(2.0, abs=0.5)


def test_what_expired_counts_only_where_it_took_longer():
    pace = Pace()
    pace.settled(outcome(2.0), 0.0)
    pace.settled(outcome(1.0, OutcomeKind.EXPIRED), 0.0)
    assert pace.service.value == 2.0
    pace.settled(outcome(4.0, OutcomeKind.EXPIRED), 0.0)
    assert pace.service.value == pytest.approx(2.2)


def test_what_never_ran_teaches_nothing():
    pace = Pace()
    pace.settled(outcome(5.0, OutcomeKind.SHED, started=None), 9.0)
    pace.settled(outcome(5.0, OutcomeKind.FAILED), 0.0)
    pace.settled(outcome(5.0, OutcomeKind.EXPIRED), 0.0)
    assert pace.service.value is None


def test_starts_count_only_while_others_wait():
    pace = Pace()
    pace.started(1, 3, 10.0)
    assert pace.interval.value is None
    pace.started(1, 0, 12.0)
    assert pace.interval.value == 2.0
    pace.started(1, 5, 900.0)
    assert pace.interval.value == 2.0, "nobody waited before this one"
    pace.started(4, 1, 908.0)
    assert pace.interval.value == 2.0, "four in eight seconds"


def test_predictions_that_fell_short_stretch_the_next_ones():
    pace = Pace()
    assert pace.stretch() == 1.0
    for _ in range(100):
        pace.settled(outcome(2.0), 2.5)  # arrived 1 s before its start: 3 s in all
    assert pace.stretch() == pytest.approx(1.2, abs=0.01)
    for _ in range(100):
        pace.settled(outcome(2.0), 30.0)
    assert pace.stretch() == 1.0


def test_slots_that_fall_free_together_do_not_look_like_an_endless_pace():
    pace = Pace()
    now = 0.0
    for _ in range(30):
        for burst in range(8):
            pace.started(1, 20, now + burst * 1e-4)
        now += 4.0
    assert pace.interval.value == pytest.approx(0.5, rel=0.1)
