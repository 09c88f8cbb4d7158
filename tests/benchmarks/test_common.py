import json
import os
import socket
from pathlib import Path

import pytest
from benchmarks import common


def test_arguments():
    assert vars(common.arguments("what it is", [])) == {"quick": False, "json": None}
    given = common.arguments(
        None, ["--quick", "--json", "x.json", "--n", "3"], lambda p: p.add_argument("--n", type=int)
    )
    assert (given.quick, given.json, given.n) == (True, Path("x.json"), 3)


def test_a_report_is_the_object_that_the_design_names(tmp_path, capsys):
    report = common.Report("sample", {"clients": 2})
    assert report.add("tokens_vs_direct", [0.9, 1.1, 0.97], goal="at least 0.95") == 0.97
    report.add("lost_requests", 0)
    report.note("one")
    report.note("one")
    report.finish(tmp_path / "out.json")
    document = json.loads((tmp_path / "out.json").read_text())
    assert list(document) == ["name", "commit", "machine", "settings", "figures", "spread", "notes"]
    assert document["figures"] == {"tokens_vs_direct": 0.97, "lost_requests": 0.0}
    assert document["spread"] == {"tokens_vs_direct": [0.9, 1.1]}
    assert document["notes"] == ["one"]
    printed = capsys.readouterr().out
    assert "tokens_vs_direct" in printed
    assert "at least 0.95" in printed


def test_the_machine_is_described_without_its_name():
    facts = common.machine()
    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert facts["memory_gib"] > 0.1
    assert facts["cpu"]
    assert socket.gethostname() not in json.dumps(facts)


def test_ratios_are_run_by_run():
    assert common.ratios([1.0, 4.0], [2.0, 2.0]) == [0.5, 2.0]
    with pytest.raises(ValueError, match="shorter"):
        common.ratios([1.0], [])


def test_a_picture_is_written(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    with common.picture("sample", "a title", columns=2) as (left, right):
        common.bars(left, {"ours": [3.0, 4.0, 5.0], "theirs": [2.0]}, "tokens/s")
        right.plot([1, 2], [3, 4])
    assert (tmp_path / "results" / "sample.png").read_bytes().startswith(b"\x89PNG")
