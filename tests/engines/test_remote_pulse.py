from __future__ import annotations

from foreserve.engines.remote_pulse import Pulse

EVERY, LIMIT, MOST = 5.0, 4.0, 100.0


def pulse() -> Pulse:
    return Pulse(EVERY, LIMIT, MOST, 0.0)


def test_a_silent_server_is_due_and_hangs_when_its_probe_is_late() -> None:
    it = pulse()
    assert not it.due(4.9)
    assert it.due(5.0)
    assert not it.hangs(5.0, 8.9)
    assert it.hangs(5.0, 9.0)
    it.proved(8.0)
    assert not it.due(12.9)


def test_a_server_that_is_to_answer_is_asked_sooner_and_no_more_often() -> None:
    it = pulse()
    it.began("a", 40, 1, 10.0)
    assert it.due(10.0)
    it.probed(10.0)
    it.proved(10.5)
    assert not it.due(14.9)
    assert it.due(15.0)
    it.heard("a", 14.5)
    assert not it.due(15.4)
    assert it.due(15.5)


def test_bytes_of_an_answer_are_evidence_and_make_a_probe_needless() -> None:
    it = pulse()
    it.began("a", 40, 1, 0.0)
    for at in range(40):
        it.heard("a", float(at))
        assert not it.due(at + 0.9)
    assert not it.hangs(5.0, 38.9 + LIMIT)
    assert it.hangs(5.0, 43.0 + LIMIT)


def test_a_counter_that_grows_is_evidence_and_one_that_stands_still_is_evidence_of_the_opposite() -> None:
    it = pulse()
    it.began("a", 4000, 1, 0.0)
    for at in range(1, 60):
        it.told(float(at), float(at))
        assert not it.hangs(6.0, at + 0.9)
    # A thousand tokens may take a slow server five seconds more, but it says itself that it does nothing.
    assert it.patience() == LIMIT + 1000 / 200
    it.told(59.0, 62.0)
    assert it.patience() > LIMIT
    it.told(59.0, 59.0 + LIMIT)
    assert it.patience() == LIMIT
    assert it.hangs(60.0, 60.0 + LIMIT)


def test_where_progress_is_not_told_answers_that_take_long_are_waited_for_longer() -> None:
    it = pulse()
    it.began("long", 40, 1, 0.0)
    it.heard("long", 30.0)
    it.ended("long")
    assert it.patience() == LIMIT, "nothing is under way"
    it.began("next", 40, 1, 31.0)
    assert 45.0 < it.patience() - LIMIT < 46.0
    for n in range(40):
        it.began(f"quick{n}", 4, 1, 40.0)
        it.heard(f"quick{n}", 40.1)
        it.ended(f"quick{n}")
    assert it.patience() < LIMIT + 1.5, "that was long ago"
    it.began("endless", 4 * 10**7, 1, 50.0)
    assert it.patience() == MOST


def test_what_is_under_way_counts_each_answer() -> None:
    it = pulse()
    it.began("a", 4, 1, 0.0)
    it.began("b", 4, 3, 0.0)
    assert it.under_way == 4
    it.ended("b")
    it.ended("b")
    assert it.under_way == 1


def test_the_pace_of_streams() -> None:
    it = pulse()
    assert it.step_s is None
    it.began("a", 4, 1, 0.0)
    it.heard("a", 1.0)
    it.heard("a", 3.0)
    it.streamed("a", 21.0)
    assert it.step_s == 0.1
    it.streamed("a", 1.0)
    it.streamed("unknown", 9.0)
    assert it.step_s == 0.1
