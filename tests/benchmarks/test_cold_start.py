from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import cold_models
from benchmarks.cold_app import Model, house
from benchmarks.cold_start import CALLS, PATIENT, cold, reads_for_eight, told
from benchmarks.common import Report

BLOCK = 64


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(cold_models, "BLOCK", BLOCK)
    cold_models.make(tmp_path, 2)
    return Model("made", tmp_path, "Made", "MadePrivate")


def test_figures_are_of_the_model_that_gains_least():
    report = Report("cold_start", {})
    sides = {f"{side}_{n}": [1.0, 1.0] for side in ("ours", "held", "warm") for n in CALLS}
    slow = {f"{side}_{n}": [20.0, 30.0] for side in ("fresh", "serial") for n in CALLS}
    slower = {name: [2 * each for each in values] for name, values in slow.items()}
    told(report, {"quick": {**sides, **slow}, "slow": {**sides, **slower}})
    assert report.figures["quick_vs_fresh_process_4"] == 25.0
    assert report.figures["slow_vs_fresh_process_4"] == 50.0
    assert report.figures["duration_vs_fresh_process_4"] == 25.0
    assert report.figures["duration_vs_serial_setup"] == 25.0


@pytest.mark.slow
async def test_workers_that_have_left_come_back_and_answer_alike(made: Model):
    async with house(made.kind(**PATIENT), host_s=0.0) as shared, house(made.kind("private", **PATIENT)) as private:
        assert (await shared.call())[1] == (await private.call())[1]
        assert len(await cold(shared, 3)) == 3


@pytest.mark.slow
async def test_eight_workers_read_the_weights_once(made: Model):
    reads, _ = await reads_for_eight(made)
    assert reads == pytest.approx(1.0, abs=0.01)
