from __future__ import annotations

import random

import pytest

from foreserve.fleet.steps import MOST_SURPRISE, PromptPace


def test_nothing_is_known_until_a_prompt_was_read():
    pace = PromptPace()
    pace.read(0, 1.0)
    pace.read(100, 0.0)
    assert pace.token_s is None
    pace.read(100, 0.5)
    assert pace.token_s == pytest.approx(0.005)


def test_what_every_reading_takes_is_not_put_down_to_tokens():
    draw, pace = random.Random(0), PromptPace()
    for _ in range(200):
        tokens = draw.randint(10, 4000)
        pace.read(tokens, 0.03 + tokens * 0.0002)
    assert pace.token_s == pytest.approx(0.0002, rel=0.01)


def test_readings_of_one_length_tell_the_whole():
    pace = PromptPace()
    for _ in range(50):
        pace.read(100, 0.05)
    assert pace.token_s == pytest.approx(0.0005)


def test_one_reading_that_waited_for_something_else_counts_little():
    pace = PromptPace()
    for _ in range(50):
        pace.read(100, 0.05)
    pace.read(100, 60.0)
    assert pace.token_s == pytest.approx(0.0005, rel=0.025 * MOST_SURPRISE)


def test_it_follows_a_replica_that_has_become_slow():
    draw, pace = random.Random(0), PromptPace()
    for factor in (1, 3):
        for _ in range(300):
            tokens = draw.randint(10, 4000)
            pace.read(tokens, factor * tokens * 0.0002)
        assert pace.token_s == pytest.approx(factor * 0.0002, rel=0.05)
