from __future__ import annotations

import pytest

from foreserve.errors import ConfigError
from foreserve.fleet.inline import InlineLauncher
from foreserve.simulation import faults
from foreserve.simulation.faults import parse_faults
from foreserve.traces.row import TraceRow
from tests.simulation.trials import rows, trial


def test_a_spike_multiplies_what_comes_in_its_windows_and_keeps_the_order():
    plain = list(rows(2000))
    found = list(parse_faults("load_spike:every_s=30;for_s=10;times=3.5", 5).rows(iter(plain)))
    arrivals = [row.arrival for row in found]
    assert arrivals == sorted(arrivals)
    assert found[-1].arrival <= plain[-1].arrival
    assert set(plain) <= set(found)
    assert 1.2 * len(plain) < len(found) < 3.5 * len(plain)


def test_a_spike_of_the_same_rows_sooner():
    plain = list(rows(2000))
    found = list(parse_faults("load_spike:every_s=30;for_s=10;times=4;how=sooner", 5).rows(iter(plain)))
    assert len(found) == len(plain)
    arrivals = [row.arrival for row in found]
    assert arrivals == sorted(arrivals)
    moved = sum(one.arrival < other.arrival for one, other in zip(found, plain, strict=True))
    assert 100 < moved < 1500


def test_rows_are_streamed():
    def endless():
        at = 0.0
        while True:
            at += 1.0
            yield TraceRow(arrival=at)

    spiked = parse_faults("load_spike", 1).rows(endless())
    assert len([next(spiked) for _ in range(100)]) == 100


def test_one_fault_more_changes_no_other_ones_draws():
    alone = trial("worker_death:every_s=5", 3, per_s=1.0, count=60).happened
    both = trial("worker_death:every_s=5,mispredicted_lengths", 3, per_s=1.0, count=60).happened
    both = [one for one in both if one.fault == "worker_death"]
    assert [(one.at, one.to) for one in both] == [(one.at, one.to) for one in alone]
    assert len(alone) > 3


def test_a_dead_replica_comes_back_and_what_it_ran_goes_on_elsewhere():
    found = trial("worker_death:every_s=10", 4)
    assert not found.findings
    assert any("with" in one.what and "with 0" not in one.what for one in found.happened)
    assert found.outcomes["done"] > 150


def test_mispredictions_change_the_run_and_lose_nobody():
    plain, wrong = trial("", per_s=4.0), trial("mispredicted_lengths:bias=3;noise=1;absurd=0.2", per_s=4.0)
    assert not wrong.findings
    assert plain.digest != wrong.digest
    assert wrong.outcomes["done"] > 150


def test_spikes_are_told_each_and_wrong_lengths_once():
    found = trial("load_spike:every_s=10;for_s=4,mispredicted_lengths:noise=3")
    spikes = [one for one in found.happened if one.fault == "load_spike"]
    assert 1 < len(spikes) == found.struck["load_spike"] < 8
    assert len({one.at for one in spikes}) == len(spikes)
    assert {one.what for one in spikes} == {"4 times as many for 4 s"}
    assert found.struck["mispredicted_lengths"] == 1


def test_all_are_counted_and_the_first_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(faults, "MOST_TOLD", 5)
    found = trial("client_cancel:share=0.5;patience_s=0.3", per_s=3.0)
    assert len(found.happened) == 5
    assert found.struck == {"client_cancel": found.outcomes["cancelled"]}
    assert found.outcomes["cancelled"] > 30


@pytest.mark.parametrize("name", ["client_cancel", "mispredicted_lengths", "client_retry", "delayed_start"])
def test_once_is_enough(name: str):
    with pytest.raises(ConfigError, match=f"{name} is there twice"):
        parse_faults(f"{name},{name}", 0)


@pytest.mark.parametrize("name", ["slow_worker", "stale_statistics", "lost_heartbeat", "delayed_start"])
def test_what_needs_simulated_replicas_says_so_before_anything_starts(name: str):
    with pytest.raises(ConfigError, match=f"fault {name} needs simulated replicas"):
        parse_faults(name, 0).launching(InlineLauncher())


@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.parametrize(
    "others", ["", ",worker_death:every_s=6,lost_heartbeat:every_s=15,delayed_start:by_s=5,client_cancel"]
)
def test_replicas_that_come_and_go_lose_nobody(others: str, least: int):
    found = trial("restless_scaling:every_s=3" + others, 5, per_s=3.0, replicas=[least, 4], liveness_s=10.0)
    assert found.findings == []
    assert found.struck["restless_scaling"] > 5
    if not others:
        assert set(found.outcomes) <= {"done", "shed"}
    assert (
        found.digest
        == trial("restless_scaling:every_s=3" + others, 5, per_s=3.0, replicas=[least, 4], liveness_s=10.0).digest
    )
