from collections import Counter

import numpy as np
import pytest

from foreserve.traces.servegen import open_servegen
from tests.traces import servegen as small


@pytest.fixture
def folder(tmp_path):
    return small.write(tmp_path / "small")


def test_each_window_has_as_many_requests_as_were_counted(folder):
    trace = open_servegen(folder)
    rows = list(trace)
    assert [row.arrival for row in rows] == sorted(row.arrival for row in rows)
    counts = Counter((int(row.tenant.removeprefix("client-")), int(row.arrival // 600)) for row in rows)
    assert counts == small.COUNTS
    assert len(trace) == len(rows) == sum(small.COUNTS.values())


def test_lengths_follow_the_distributions_of_their_time(folder):
    rows = list(open_servegen(folder))
    first = [row for row in rows if row.tenant == "client-3" and row.arrival < 1200]
    assert {row.input_tokens for row in first} == {1100}  # text and image together
    assert Counter(row.output_tokens for row in first)[7] / len(first) == pytest.approx(0.5, abs=0.05)
    later = [row for row in rows if row.tenant == "client-3" and row.arrival >= 1200]
    assert {(row.input_tokens, row.output_tokens) for row in later} == {(300, 11)}
    # Where its own six hours have none, the nearest before are taken.
    mine = [row for row in rows if row.tenant == "client-0"]
    assert {row.input_tokens for row in mine if row.arrival >= 1200} == {10, 20}
    assert sum(row.input_tokens == 10 for row in mine) / len(mine) == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(
    ("client", "window", "cv"), [("client-0", 0, 2.0), ("client-3", 1, 1.0), ("client-0", 3, 0.52)]
)
def test_gaps_are_as_bursty_as_was_fitted(folder, client, window, cv):
    found = []
    for seed in range(20):
        rows = [row.arrival for row in open_servegen(folder, seed=seed) if row.tenant == client]
        gaps = np.diff([at for at in rows if window * 600 <= at < window * 600 + 600])
        found.append(gaps.std() / gaps.mean())
    assert np.mean(found) == pytest.approx(cv, rel=0.1)


def test_the_same_for_a_seed_and_as_often_as_one_likes(folder):
    trace = open_servegen(folder, seed=1)
    assert list(trace) == list(trace) == list(open_servegen(folder, seed=1))
    assert list(trace) != list(open_servegen(folder, seed=2))


def test_a_part_is_the_same_part_of_the_whole(folder):
    trace = open_servegen(folder)
    part = trace.between(700.0, 1900.0)
    whole = [row for row in trace if 700.0 <= row.arrival < 1900.0]
    assert [row.arrival + 700.0 for row in part] == pytest.approx([row.arrival for row in whole])
    assert [row.input_tokens for row in part] == [row.input_tokens for row in whole]
    assert len(part) == pytest.approx(len(whole), rel=0.1)
    again = trace.between(100.0, 2000.0).between(600.0, 1800.0)
    assert list(again) == list(part)


def test_fewer_or_more_of_it(folder):
    trace = open_servegen(folder)
    for rate in (0.1, 0.37, 3.0):
        rows = list(trace.kept(rate))
        assert len(rows) == pytest.approx(len(trace) * rate, abs=8)
        assert len(trace.kept(rate)) == pytest.approx(len(trace) * rate, abs=1)
