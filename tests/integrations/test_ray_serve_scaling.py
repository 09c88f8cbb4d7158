import logging
import threading
from types import SimpleNamespace

import pytest

from foreserve.integrations.ray_serve_scaling import FIT_EVERY, ForecastPolicy


def context(load, at, target=1, least=1, most=10):
    return SimpleNamespace(
        total_num_requests=load,
        current_time=at,
        target_num_replicas=target,
        capacity_adjusted_min_replicas=least,
        capacity_adjusted_max_replicas=most,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: 2.0),
    )


def play(policy, load, seconds, **words):
    """Ten looks a second, as Serve's controller does; the last number of replicas."""
    for tick in range(seconds * 10):
        wanted, state = policy(context(load(tick / 10), 1000.0 + tick / 10, **words))
        assert state == {}
    return wanted


def test_it_follows_the_load_within_its_bounds():
    assert play(ForecastPolicy(), lambda _: 6.0, 60) == 3
    assert play(ForecastPolicy(), lambda _: 600.0, 60) == 10
    assert play(ForecastPolicy(), lambda _: 0.0, 60, least=0) == 0


def test_a_replica_bears_what_the_settings_say():
    assert play(ForecastPolicy(target_ongoing_requests=6.0), lambda _: 6.0, 60) == 1
    assert play(ForecastPolicy(headroom=1.5), lambda _: 6.0, 60) == 5


def test_it_scales_ahead_of_a_ramp():
    ahead = play(ForecastPolicy(horizon_s=30.0), lambda at: at / 20, 120)
    assert ahead > -(-120 / 20 // 2)


def test_a_sudden_load_is_met_at_once_whatever_is_foreseen():
    assert play(ForecastPolicy(), lambda at: 2.0 if at < 59.9 else 18.0, 60) == 9


def test_anything_wrong_keeps_the_target(caplog):
    policy = ForecastPolicy()
    for wrong in (context(None, 1.0, target=4), context(float("nan"), 1.0, target=4), context(1.0, None, target=4)):
        assert policy(wrong) == (4, {})
    assert policy.faults.count == 3
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]  # the 1st and the 2nd


@pytest.mark.parametrize("wrong", [{"forecaster": "oracle"}, {"window_s": 0.0}, {"horizon_s": -1.0}])
def test_wrong_settings_are_logged_and_keep_the_target(wrong, caplog):
    policy = ForecastPolicy(**wrong)
    assert policy(context(9.0, 1.0, target=4)) == (4, {})
    assert str(next(iter(wrong.values()))) in caplog.text


def test_a_forecaster_that_fails_keeps_the_target_and_may_recover():
    policy = ForecastPolicy(window_s=1.0)
    good = policy._forecaster

    class Fails:
        learns = False

        def forecast(self, series, origins, steps):
            raise ZeroDivisionError

    policy._forecaster = Fails()
    assert play(policy, lambda _: 6.0, 3, target=7) == 3  # of the load that there is, between two windows
    assert policy.faults.count == 2
    policy._forecaster = good
    assert play(policy, lambda _: 6.0, 3) == 3


def test_a_gap_and_a_clock_that_is_set_back():
    policy = ForecastPolicy(window_s=1.0)
    assert policy(context(6.0, 1000.0)) == (3, {})
    assert policy(context(6.0, 1e7)) == (3, {})
    assert len(policy._values) == 20_000
    assert policy(context(6.0, 500.0)) == (3, {})
    assert policy.faults.count == 0


def test_training_is_done_beside_and_taken_over():
    policy = ForecastPolicy(window_s=1.0, horizon_s=1.0)
    policy.faults._log = logging.getLogger("quiet")
    fitted, trained_in = SimpleNamespace(learns=False, forecast=lambda series, origins, steps: [8.0]), []

    class Learns:
        learns = True

        def forecast(self, series, origins, steps):
            return [2.0]

        def fit(self, series, steps):
            trained_in.append(threading.current_thread())
            return fitted

    policy._forecaster = Learns()
    play(policy, lambda _: 1.0, FIT_EVERY + 2)
    policy._fitting.join(5)
    assert policy._forecaster is fitted
    assert trained_in == [policy._fitting]
    assert play(policy, lambda _: 1.0, 3) == 4
