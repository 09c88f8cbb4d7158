from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import fidelity, fidelity_report
from benchmarks.common import Report
from benchmarks.fidelity_live import Went, times
from benchmarks.fidelity_report import Run

from foreserve.engines.profile import linear
from foreserve.traces.own import write_rows
from foreserve.traces.row import Header, TraceRow


def went(first_s: float, total_s: float, tokens: int = 10, kind: str = "done") -> Went:
    return Went(kind=kind, first_s=first_s, total_s=total_s, wait_s=0.0, tokens=tokens)


def test_figures_are_of_what_was_done():
    arrivals = [5.0, 6.0, 7.0, 8.0]
    found = fidelity_report.figures(
        arrivals, [went(0.1, 1.0), went(0.2, 2.0), went(0.3, 3.0), went(9.0, 9.0, kind="expired")]
    )
    assert found["ttft_p50"] == pytest.approx(0.2)
    assert found["e2e_p50"] == pytest.approx(2.0)
    assert found["throughput"] == pytest.approx(30 / 5.0)


def test_errors_are_against_the_mean_of_both_and_the_worst_load_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fidelity_report, "_draw", lambda runs: None)
    arrivals = [0.0, 1.0, 2.0]

    def run(simulated: float) -> Run:
        live = [[went(0.1, total)] * 3 for total in (0.9, 1.1)]
        return Run(arrivals=arrivals, live=live, simulated=[went(0.1, simulated)] * 3)

    report = Report("fidelity", {})
    fidelity_report.add(report, {0.4: run(1.0), 0.8: run(1.5)})
    assert report.figures["e2e_p50_error"] == pytest.approx(0.5)
    assert report.figures["e2e_p50_error_040"] == pytest.approx(0.0)
    assert report.figures["ttft_p99_error"] == 0.0
    assert report.figures["live_spread_p50"] == pytest.approx(0.2)
    missed = [note for note in report.notes if "misses its gate" in note]
    assert {note.split(" misses")[0] for note in missed} == {
        "at 0.8 of saturation e2e_p50",
        "at 0.8 of saturation e2e_p99",
        "at 0.8 of saturation throughput",
    }


def test_a_trace_is_simulated_in_order(tmp_path: Path):
    rows = [TraceRow(arrival=at, input_tokens=50, output_tokens=10 + n) for n, at in enumerate(times(2.0, 20, 0))]
    write_rows(tmp_path / "trace.jsonl", Header(block_tokens=32), rows)
    kept = fidelity.Kept(loads=[0.4], warm=0, saturation_per_s=1.0, words=fidelity.WORDS, mix="apps")
    found = fidelity.simulated(linear(slots=8), kept, tmp_path / "trace.jsonl")
    assert [one.tokens for one in found] == [row.output_tokens for row in rows]
    assert all(one.kind == "done" for one in found)
