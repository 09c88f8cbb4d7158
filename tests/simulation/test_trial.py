from __future__ import annotations

import pytest

from tests.simulation.trials import trial

EVERYTHING = (
    "worker_death:every_s=10;at_once=2,client_cancel:share=0.2,client_retry,load_spike:every_s=10;for_s=5,"
    "mispredicted_lengths:bias=2;absurd=0.1"
)


@pytest.mark.parametrize("policy", ["hrrn", "fcfs", "magnus", "fixed"])
def test_all_holds_whatever_goes_wrong(policy: str):
    found = trial(EVERYTHING, 1, policy=policy)
    assert not found.findings
    assert found.outcomes["done"] > 50
    assert {"worker_death", "client_cancel", "client_retry"} <= {one.fault for one in found.happened}


def test_a_seed_gives_the_same_run_and_another_a_different_one():
    assert trial(EVERYTHING, 2) == trial(EVERYTHING, 2)
    assert trial(EVERYTHING, 2).digest != trial(EVERYTHING, 3).digest


def test_without_faults_everybody_is_served():
    found = trial("", per_s=2.0)
    assert not found.findings
    assert found.outcomes == {"done": 200}
    assert not found.happened
