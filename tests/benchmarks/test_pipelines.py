from __future__ import annotations

import pytest
from benchmarks.pipeline_engine import CHARS_PER_TOKEN, pieces_of, said
from benchmarks.pipeline_routing import SIDES, latencies
from benchmarks.pipeline_simulated import Point, app, play, same, swept, within
from benchmarks.pipelines import next_rate


def point(form: str, *, shared: bool = False, replicas: int = 1, rate: float = 2.0, count: int = 12) -> Point:
    return play(app(form, shared=shared, replicas=replicas), rate, count)


def test_streaming_changes_when_and_not_what():
    on, off, stagewise = point("streaming"), point("nonstreaming"), point("stagewise")
    shared, many = point("streaming", shared=True), point("streaming", replicas=3)
    assert same([on, off, stagewise, shared, many])
    assert any(result["verdicts"] for result in on.results.values())
    assert on.mean < off.mean < stagewise.mean
    assert sum(on.firsts) < sum(off.firsts)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("shared", [True, False])
def test_two_hundred_requests_come_to_the_same_at_every_replica_count(replicas: int, shared: bool):
    on = point("streaming", shared=shared, replicas=replicas, rate=3.0, count=200)
    off = point("nonstreaming", shared=shared, replicas=1, rate=1.0, count=200)
    assert same([on, off])


def test_the_script_says_the_same_to_the_same_prompt():
    prompt = "user: Text: a\nFacts:"
    assert said(prompt) == said(prompt) != said(prompt + "b")
    assert b"".join(pieces_of(said(prompt))).decode() == said(prompt)
    assert all(len(piece) <= CHARS_PER_TOKEN for piece in pieces_of("x" * 9))


def test_every_way_of_routing_serves_all():
    found = {side: latencies(side, 4, 60) for side in SIDES}
    assert all(len(each) == 60 for each in found.values())
    assert sum(found["ours"]) <= sum(found["key"])


def test_the_highest_rate_within_a_target():
    assert within([1.0, 2.0, 3.0], [1.0, 2.0, 4.0], 3.0) == 2.5
    assert within([1.0, 2.0], [1.0, 2.0], 9.0) == 2.0
    assert within([1.0, 2.0], [4.0, 8.0], 2.0) == 0.5


def test_a_sweep_has_the_same_results_in_each_form():
    on, off = swept("streaming", False, 4, (0.05, 4.0)), swept("nonstreaming", False, 4, (0.05, 4.0))
    assert on.results == off.results
    assert on.first < off.first
    assert len(on.means) == len(on.p99s) == 2


def test_the_next_rate_brackets_the_target_and_then_halves_the_widest_gap():
    assert next_rate([1.0], {"a": [2.0], "b": [9.0]}, 3.0) == 1.6
    assert next_rate([1.0], {"a": [4.0], "b": [9.0]}, 3.0) == 1.0 / 1.6
    assert next_rate([1.0, 4.0], {"a": [2.0, 4.0], "b": [2.0, 9.0]}, 3.0) == 2.0
    assert next_rate([1.0, 2.0, 4.0], {"a": [2.0, 4.0, 5.0], "b": [1.0, 2.0, 9.0]}, 3.0) == pytest.approx(8**0.5)
    assert next_rate([1.0, 1.1], {"a": [2.0, 4.0]}, 3.0) is None
