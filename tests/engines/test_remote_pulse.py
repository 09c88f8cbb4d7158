from __future__ import annotations

import pytest

from foreserve.engines.remote_pulse import Pulse
from foreserve.settings import UpstreamSettings

EVERY, LIMIT, MOST = 5.0, 4.0, 100.0


def pulse() -> Pulse:
    return Pulse(EVERY, LIMIT, LIMIT, MOST, 0.0)


def usual() -> Pulse:
    """As the settings have it when nobody says otherwise."""
    known = UpstreamSettings(urls=["http://a"])
    return Pulse(known.probe_every_s, known.probe_limit_s, known.probe_busy_s, known.timeout_s, 0.0)


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
    it.began("b", 40_000, 1, 59.0)
    assert it.patience() == MOST
    it.told(59.0, 62.0)
    assert it.patience() == MOST
    it.told(59.0, 59.0 + LIMIT)
    assert it.patience() == MOST, "one step of 2,048 tokens may take a slow server that long"
    it.ended("b")
    it.told(60.0, 64.0)
    it.heard("a", 64.0)
    it.told(60.0, 64.0 + LIMIT)
    assert it.patience() == LIMIT, "it has nothing to read, and says itself that it does nothing"
    assert it.hangs(64.0, 64.0 + LIMIT)


def test_where_progress_is_not_told_answers_that_take_long_are_waited_for_longer() -> None:
    it = pulse()
    it.began("long", 40, 1, 0.0)
    it.heard("long", 30.0)
    it.ended("long")
    assert it.patience() == LIMIT, "nothing is under way"
    it.began("next", 40, 1, 31.0)
    assert 45.0 < it.patience() - LIMIT < 46.0
    it.heard("next", 32.0)
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


@pytest.mark.parametrize("tells", [False, True])
def test_a_slow_server_that_reads_a_prompt_for_a_minute_is_not_hung(tells: bool) -> None:
    it = usual()
    if tells:
        it.told(7.0, 100.0)  # nobody can ask while it reads
    it.proved(100.0)
    it.began("a", 4_000, 1, 103.0)
    assert it.due(103.0)
    it.probed(103.0)
    assert not it.hangs(103.0, 163.0)
    it.heard("a", 163.0)
    assert not it.hangs(103.0, 167.9)
    assert it.hangs(103.0, 163.0 + 5.0 + 1.5 * 60.0)


def test_an_answer_in_one_piece_takes_its_time_however_short_its_prompt() -> None:
    it = usual()
    it.began("a", 40, 1, 0.0)
    assert not it.hangs(1.0, 100.0)
    assert it.hangs(1.0, 121.0)


def test_prompts_that_are_read_one_after_the_other_are_waited_for_together() -> None:
    it = usual()
    for n in range(4):
        it.began(f"r{n}", 4_800, 1, 0.0)
    assert not it.hangs(1.0, 240.0)


def test_a_prompt_whose_client_left_may_still_be_read() -> None:
    it = usual()
    it.began("a", 4_000, 1, 0.0)
    it.ended("a")
    assert not it.hangs(6.0, 60.0)
    it.proved(60.0)
    assert it.hangs(65.0, 70.0), "it has answered since"


def test_counters_that_stood_still_while_nothing_was_to_do_tell_nothing() -> None:
    it = Pulse(30.0, LIMIT, 60.0, MOST, 0.0)
    for at in range(20):
        it.told(7.0, float(at))
    it.began("a", 40, 1, 20.0)
    it.told(7.0, 20.1)
    assert not it.hangs(21.0, 27.0)
    it.told(7.0, 20.0 + LIMIT)
    assert it.hangs(21.0, 27.0)
