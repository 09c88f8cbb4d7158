from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
from benchmarks.common import Report
from benchmarks.graphs_exact import error_after, typed
from benchmarks.graphs_model import loaded
from benchmarks.graphs_real import citations, timed
from benchmarks.graphs_updates import SIDES, Sizes, compared, with_expiry


def test_every_side_is_measured_on_the_same_batches():
    report = Report("graphs", {})
    store = loaded(500, 5_000, np.random.default_rng(0))
    edges = len(store.edges[next(iter(store.edges))])
    name = compared(report, store, "gcn", 2, Sizes(4, 2, 1))
    assert name == "gcn_2_1e4"
    assert {f"{side}_ratio_{name}" for side in SIDES} <= set(report.figures)
    assert report.figures[f"dense_share_all_layers_{name}"] == 1.0
    assert len(store.edges[next(iter(store.edges))]) == edges, "as many go as come"


def test_as_many_edges_expire_as_come():
    report = Report("graphs", {})
    with_expiry(report, 500, 5_000, 3)
    assert "update_ms_gcn_2_1e4_expiry" in report.figures


def test_errors_are_those_of_rounding():
    report = Report("graphs", {})
    assert error_after(report, "gin", 2, 1_000) < 1e-4
    typed(report, 2)
    assert report.figures["nightly_relative_difference_typed"] < 1e-4


def test_real_graphs_are_read_as_they_are_written(tmp_path: Path):
    path = tmp_path / "a.npz"
    np.savez(path, adj_indptr=np.array([0, 2, 3]), adj_indices=np.array([1, 0, 0]))
    assert [ends.tolist() for ends in citations(path)] == [[0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 1]]
    text = tmp_path / "a.txt.xz"
    text.write_bytes(lzma.compress(b"src dst time\n7 3 20\n3 9 10\n"))
    source, target, time = timed(text)
    assert (source.tolist(), target.tolist(), time.tolist()) == ([0, 1], [2, 0], [10.0, 20.0])
    table = tmp_path / "a.csv.xz"
    table.write_bytes(lzma.compress(b"6,2,4,30.5\n6,5,2,20.5\n"))
    assert [each.tolist() for each in timed(table)] == [[2, 2], [1, 0], [20.5, 30.5]]
