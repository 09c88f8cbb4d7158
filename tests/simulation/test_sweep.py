"""Fifty random apps, engines and loads under random faults.

`make soak` does SOAK_SEEDS (1,000) others, from a random seed beyond these, and SOAK_ROUND_SEEDS (100) new ones in each
of its rounds.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from rich.console import Console

from foreserve.cli.sweep import run_sweep
from foreserve.simulation import sweep as sweeping
from foreserve.simulation.checks import Finding
from foreserve.simulation.mixed import mixed
from foreserve.simulation.sweep import Summary, Swept, random_one, sweep

SEEDS = range(50)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shown() -> list[Swept]:
    return list(sweep(random_one, SEEDS))


def test_all_checks_hold_in_every_seed(shown: list[Swept]):
    failed = {one.seed: one.findings[:3] for one in shown if one.findings}
    assert not failed, "again: foreserve simulate --faults mixed --seeds 1 --fault-seed SEED"


def test_everything_that_can_happen_does_happen_somewhere(shown: list[Swept]):
    summary = Summary()
    for one in shown:
        summary.add(one)
    assert summary.seeds == len(SEEDS)
    assert set(summary.outcomes) >= {"done", "shed", "expired", "cancelled", "failed"}
    assert set(summary.happened) == {
        "worker_death", "slow_worker", "stale_statistics", "lost_heartbeat", "delayed_start", "client_cancel",
        "client_retry", "load_spike", "mispredicted_lengths", "restless_scaling",
    }  # fmt: skip
    assert summary.outcomes["done"] > summary.requests / 5


def test_a_seed_is_the_same_in_another_process(shown: list[Swept]):
    """Where strings hash otherwise, so that an order that hangs on that would show."""
    there = list(sweep(random_one, SEEDS[:8], jobs=2))
    assert there == shown[:8]
    assert len({one.digest for one in shown}) == len(SEEDS)


def test_a_case_is_drawn_again_from_its_number():
    assert mixed(5) == mixed(5)
    assert list(mixed(5).rows()) == list(mixed(5).rows())
    assert mixed(5) != mixed(6)


def test_faults_by_name_go_with_random_apps():
    one = random_one(3, "worker_death:every_s=2")
    assert set(one.happened) == {"worker_death"}
    assert not one.findings


def broken(seed: int, bad: frozenset[int]) -> Swept:
    def trial() -> sweeping.Trial:
        raise ValueError("it broke")

    if seed in bad:
        return sweeping.swept(seed, trial)
    return Swept(seed=seed, findings=[], outcomes={"done": 10}, happened={}, digest="")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_seed_that_fails_is_told_with_the_command_that_does_it_again(jobs: int, capsys: pytest.CaptureFixture[str]):
    one = functools.partial(broken, bad=frozenset({3, 7}))
    summary = run_sweep(Console(width=200), one, range(10), lambda seed: f"do {seed}", jobs=jobs)
    out = capsys.readouterr().out
    assert summary.failed == 2
    assert "seed 3: 1 finding\n  raised at 0.000 s: ValueError: it broke\n  again: do 3\n" in out
    assert "  again: do 7\n" in out
    assert "10 seeds, 80 requests: 2 seeds failed (raised in 2)" in out


def test_a_summary_counts_seeds_by_check():
    finding = Finding(check="room", at=1.0, words="too many")
    summary = Summary()
    for seed in range(3):
        summary.add(Swept(seed=seed, findings=[finding] * 5, outcomes={"done": 1}, happened={}, digest=""))
    assert summary.findings == {"room": 3}


def test_a_soak_sweeps_seeds_beyond_these_and_new_ones_in_each_round():
    lines = (ROOT / "Makefile").read_text()
    sweeps = re.findall(r"simulate --faults mixed --fault-seed (\S+) --seeds (\S+)", lines)
    assert sweeps == [("$$first", "$(SOAK_SEEDS)"), ("$$seed", "$(SOAK_ROUND_SEEDS)")]
    assert "\nSOAK_SEEDS ?= 1000\nSOAK_ROUND_SEEDS ?= 100\n" in lines
    assert f"first=$$(( {len(SEEDS)} + " in lines
