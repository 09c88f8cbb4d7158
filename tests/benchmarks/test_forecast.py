from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from benchmarks import forecast, forecast_loads
from benchmarks.forecast import mape, play

from foreserve.foresight.workload import Series
from foreserve.foresight.workload_naive import LastValue, SeasonalNaive


def test_mape_counts_windows_in_which_something_came_and_was_foreseen():
    came = np.array([1.0, 100.0, 0.0, np.nan, 50.0, 10.0])
    made = np.array([9.0, 110.0, 5.0, 7.0, 40.0, np.nan])
    assert mape(came, made, 1) == pytest.approx((10.0 + 20.0) / 2)
    assert np.isnan(mape(came, made, 5))


def test_a_forecast_is_of_the_window_two_after_what_it_saw():
    values = np.arange(1.0, 61.0)
    played = play(Series(0, 600.0, values), {"last_value": LastValue()})
    assert np.array_equal(played.made["last_value"][2:], values[:-2])
    assert np.array_equal(played.made["auto"][2:], values[:-2])
    assert set(played.asked[2:]) == {"last_value"}


def test_what_is_played_does_not_know_what_comes():
    values = np.random.default_rng(0).uniform(50.0, 150.0, 300)
    other = np.concatenate([values[:200], 7.0 * values[200:]])
    one, two = (
        play(Series(0, 600.0, v), {"last_value": LastValue(), "seasonal_naive": SeasonalNaive()})
        for v in (values, other)
    )
    for ours, theirs in ((one.made["auto"], two.made["auto"]), (one.high, two.high), (one.low, two.low)):
        assert np.array_equal(ours[:202], theirs[:202], equal_nan=True)


def write_servegen(folder: Path) -> Path:
    """Two clients; nothing came of any of them in the third window."""
    files = {}
    for number, rates in ((0, (1.0, 2.0, 0.0, 1.0)), (1, (0.5, 0.0, 0.0, 0.0))):
        rows = [
            f"{600 * n},{rate},{1},{'Gamma' if rate else ''},{0.5 if rate else 0},{1}" for n, rate in enumerate(rates)
        ]
        files[f"chunk-{number}-trace.csv"] = "\n".join(rows)
        sizes = {"input_tokens": "{10: 0.5, 30: 0.5}", "output_tokens": "{4: 1.0}"}
        empty = {"input_tokens": "{}", "output_tokens": "{}"}
        files[f"chunk-{number}-dataset.json"] = json.dumps({"0": sizes, "1200": empty})
    path = folder / "small.tar"
    with tarfile.open(path, "w") as archive:
        for name, text in files.items():
            (folder / name).write_text(text)
            archive.add(folder / name, f"small/{name}")
    return path


def test_servegen_is_summed_over_clients_and_its_holes_are_unknown(tmp_path: Path):
    load = forecast_loads.servegen(write_servegen(tmp_path))
    assert np.array_equal(load.series["requests"].values, [900.0, 1200.0, np.nan, 600.0], equal_nan=True)
    assert np.array_equal(load.series["input_tokens"].values, [18_000.0, 24_000.0, np.nan, 12_000.0], equal_nan=True)
    assert load.series["output_tokens"].values[0] == 3600.0
    # Gaps of a Gamma with shape 0.5: counts vary by twice their mean.
    assert load.noise["requests"][1] == pytest.approx(np.sqrt(1200.0 * 2.0))
    assert load.noise["input_tokens"][1] == pytest.approx(np.sqrt(1200.0 * (2.0 * 20.0**2 + 100.0)))


def test_a_made_load_stands_in_where_there_is_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORESERVE_DATA", str(tmp_path))
    report = forecast.Report("forecast", {})
    (load,) = forecast_loads.loads(report, quick=True)
    assert "nothing is claimed" in report.notes[0]
    assert set(load.series) == set(forecast_loads.MEASURES)
    forecast.judge(load, ["last_value", "seasonal_naive"], report)
    forecast.headlines(load.name, report)
    assert {"mape_servegen", "mape_vs_seasonal_naive", "mape_vs_last_value"} <= report.figures.keys()
    assert report.figures["mape_vs_last_value"] <= 1.05
