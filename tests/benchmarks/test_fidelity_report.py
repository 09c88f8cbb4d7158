from __future__ import annotations

from collections.abc import Mapping

import pytest
from benchmarks import fidelity_report
from benchmarks.common import Report
from benchmarks.fidelity_live import Went
from benchmarks.fidelity_report import GATES, Run


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


def added(monkeypatch: pytest.MonkeyPatch, runs: Mapping[float, Run]) -> Report:
    monkeypatch.setattr(fidelity_report, "_draw", lambda runs: None)
    report = Report("fidelity", {})
    fidelity_report.add(report, runs)
    return report


def alike(a: float, b: float, simulated: float) -> Run:
    """One load in which only the time to the end differs."""
    live = [[went(0.1, total)] * 4 for total in (a, b)]
    return Run(arrivals=[0.0, 1.0, 2.0, 3.0], live=live, simulated=[went(0.1, simulated)] * 4)


@pytest.mark.parametrize(
    ("a", "b", "simulated", "missed"),
    [
        (1.0, 1.0, 1.09, set()),
        (1.0, 1.0, 0.91, set()),
        (1.0, 1.0, 1.15, {"e2e_p50"}),
        (1.0, 1.0, 0.85, {"e2e_p50"}),
        (1.0, 1.0, 1.25, {"e2e_p50", "e2e_p99"}),
        # Live is 30 % from live, so a simulation that is no further is not told from it.
        (0.85, 1.15, 1.25, set()),
        (0.85, 1.15, 1.35, {"e2e_p50", "e2e_p99"}),
    ],
)
def test_a_gate_is_its_share_or_the_live_spread(
    monkeypatch: pytest.MonkeyPatch, a: float, b: float, simulated: float, missed: set[str]
):
    report = added(monkeypatch, {0.6: alike(a, b, simulated)})
    notes = [note.split()[4] for note in report.notes if "misses its gate" in note]
    assert set(notes) == missed
    assert report.figures["e2e_p50_error"] == pytest.approx(abs(simulated - (a + b) / 2) / ((a + b) / 2))
    assert report.figures["live_spread_p99"] == pytest.approx(b - a)


def test_every_load_has_its_figures_and_the_worst_of_all_is_the_result(monkeypatch: pytest.MonkeyPatch):
    loads = {0.4: alike(1.0, 1.0, 1.3), 0.6: alike(1.0, 1.2, 1.1), 0.8: alike(1.0, 1.0, 0.9)}
    found = added(monkeypatch, loads).figures
    for name in GATES:
        each = [found[f"{name}_error_{load}"] for load in ("040", "060", "080")]
        assert found[f"{name}_error"] == max(each)
    assert [found[f"e2e_p99_error_{load}"] for load in ("040", "060", "080")] == pytest.approx([0.3, 0.0, 0.1])
    assert found["e2e_p50_live_060"] == pytest.approx(1.1)
    assert found["e2e_p50_simulated_080"] == pytest.approx(0.9)
    assert found["live_spread_p50"] == pytest.approx(0.2 / 1.1)


def test_who_was_not_done_is_counted_and_in_no_figure(monkeypatch: pytest.MonkeyPatch):
    run = alike(1.0, 1.0, 1.0)
    shed = Run(arrivals=run.arrivals, live=run.live, simulated=[*run.simulated[:3], went(50.0, 99.0, kind="shed")])
    report = added(monkeypatch, {0.8: shed})
    assert report.figures["e2e_p99_error"] == 0.0
    assert any("simulated {'done': 3, 'shed': 1}" in note for note in report.notes)
