import pytest
from benchmarks import data
from benchmarks.common import Report
from benchmarks.scheduler_scale import POLICIES, pick_us
from benchmarks.simulated_fleet import arrivals, rows, saturation, simulate

from foreserve.dispatch.admission import Patient


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("FORESERVE_DATA", str(tmp_path))
    assert not data.folder().joinpath("prompts").exists()


def test_every_policy_serves_the_fleet_and_knowing_lengths_helps(no_data):
    report = Report("test", {})
    served = rows(report)
    times = arrivals(600, 2 * saturation(served) * 1.5, report)
    assert len(report.notes) == 2, "it says that lengths and arrivals are made up"
    ended = {
        name: simulate(policy(), Patient(600, 600.0), served, times, 2, seed=0) for name, policy in POLICIES.items()
    }
    for one in ended.values():
        assert sum(one.kinds.values()) == 600
        assert 0.2 < one.done <= 1.0
    assert ended["hrrn"].mean_all < ended["fcfs"].mean_all
    again = simulate(POLICIES["hrrn"](), Patient(600, 600.0), served, times, 2, seed=0)
    assert again == ended["hrrn"]


def test_the_cost_of_a_pick_is_measured_with_the_queue_that_was_asked_for(no_data):
    served = rows(Report("test", {}))
    policy = POLICIES["hrrn"]()
    assert all(mean > 0 for mean in pick_us(policy, 200, served, 50, 2))
    assert len(policy._waiting) == 200  # type: ignore[attr-defined]
