from __future__ import annotations

import pytest
from benchmarks.fleet_live import MOST, SIMULATED, Shape, run_live

SHAPE = Shape(seconds=100.0, low=1.0, high=9.0, each=3.0)


def test_the_ramp_goes_up_and_down():
    assert [SHAPE.rate(at) for at in (0.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 100.0, 999.0)] == pytest.approx(
        [1.0, 1.0, 5.0, 9.0, 9.0, 9.0, 5.0, 1.0, 1.0, 1.0]
    )
    assert [SHAPE.replicas(at) for at in (0.0, 30.0, 50.0, 100.0)] == [1, 3, MOST, 1]


def test_arrivals_follow_it_and_are_the_same_for_a_seed():
    times = [arrival.at for arrival in SHAPE.arrivals(3)]
    assert times == sorted(times) == [arrival.at for arrival in SHAPE.arrivals(3)]
    assert len([at for at in times if 40 <= at < 60]) > 4 * len([at for at in times if at < 20 or at >= 80]) / 2
    assert 350 < len(times) < 550


@pytest.mark.slow
def test_a_short_ramp_loses_nothing_and_ends_where_it_began():
    found = run_live(seconds=20.0, by_hand=True)
    figures = found["figures"]
    assert (figures["lost"], figures["last_replicas"], figures["processes_left"]) == (0.0, 1.0, 0.0)
    assert figures["most_replicas"] >= 2
    assert found["endings"] == {"done": int(figures["requests"])}
    assert figures["requests"] > 20 * SIMULATED / 2
