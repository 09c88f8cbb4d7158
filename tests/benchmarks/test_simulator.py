from itertools import pairwise

from benchmarks.simulator import Generated, point, saturation


def test_the_trace_is_the_same_each_time_and_keeps_its_rate():
    trace = Generated(5000, 20.0, seed=3)
    rows = list(trace)
    assert rows == list(trace)
    assert rows != list(Generated(5000, 20.0, seed=4))
    assert len(rows) == len(trace) == 5000
    assert 0.95 < rows[-1].arrival * 20.0 / 5000 < 1.05
    assert all(a.arrival <= b.arrival for a, b in pairwise(rows))


def test_a_point_serves_all_and_tells_what_it_took():
    heard: list[int] = []
    found = point(600, 2, 0, heard.append)
    assert sum(found["outcomes"].values()) == 600
    assert found["outcomes"]["done"] > 590, "the load is below saturation"
    assert found["wall_s"] > 0
    assert found["peak_mb"] > 10
    assert heard == [256, 512]


def test_saturation_is_what_the_lengths_come_to():
    assert 5 < saturation() < 15
