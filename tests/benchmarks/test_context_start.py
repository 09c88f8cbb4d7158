from __future__ import annotations

import pytest
from benchmarks.common import Report
from benchmarks.context_start import MIB, SIDES, Start, compare, specs, told


def test_forks_are_told_beside_new_interpreters_of_the_same_turn():
    report = Report("context_start", {})
    found = {
        "fresh": [Start(2.0, 90 * MIB), Start(6.0, 90 * MIB)],
        "forked": [Start(1.0, 30 * MIB), Start(2.0, 30 * MIB)],
        "learned": [Start(0.1, 20 * MIB), Start(0.2, 20 * MIB)],
    }
    told(report, "f", found, Start(2.5, 30 * MIB))
    assert report.figures["f_forked_vs_fresh"] == 2.5
    assert report.figures["f_learned_vs_fresh"] == pytest.approx(25.0)
    assert report.figures["f_learned_mib"] == 20.0
    assert report.figures["f_first_s"] == 2.5


@pytest.mark.slow
async def test_a_function_starts_in_all_three_ways(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    spec = specs(tmp_path, quick=True)["function"]
    found, first = await compare(spec, 1)
    assert {side: len(found[side]) for side in SIDES} == dict.fromkeys(SIDES, 1)
    assert first.ready_s > 0
    assert all(each.pss > 0 for side in SIDES for each in found[side])
