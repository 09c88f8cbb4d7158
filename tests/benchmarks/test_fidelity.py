from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from benchmarks import fidelity
from benchmarks.common import Report
from benchmarks.fidelity_live import Went, times

from foreserve.engines.profile import linear
from foreserve.errors import ConfigError
from foreserve.simulation.profiles import save_profile
from foreserve.traces.own import write_rows
from foreserve.traces.row import Header, TraceRow

WENT = Went(kind="done", first_s=0.1, total_s=1.0, wait_s=0.0, tokens=10)


def test_a_trace_is_simulated_in_order(tmp_path: Path):
    rows = [TraceRow(arrival=at, input_tokens=50, output_tokens=10 + n) for n, at in enumerate(times(2.0, 20, 0))]
    write_rows(tmp_path / "trace.jsonl", Header(block_tokens=32), rows)
    kept = fidelity.Kept(loads=[0.4], warm=0, saturation_per_s=1.0, words=fidelity.WORDS, mix="apps")
    found = fidelity.simulated(linear(slots=8), kept, tmp_path / "trace.jsonl")
    assert [one.tokens for one in found] == [row.output_tokens for row in rows]
    assert all(one.kind == "done" for one in found)


def test_only_a_folder_of_its_own_is_emptied(tmp_path: Path):
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / "mine").write_text("x")
    old = tmp_path / fidelity.SERVERS / "run1" / "deep"
    old.mkdir(parents=True)
    (old / "log").write_text("x")
    for _ in range(2):
        fidelity.emptied(tmp_path / fidelity.SERVERS)
        assert list((tmp_path / fidelity.SERVERS).iterdir()) == []
    assert (tmp_path / "run1" / "mine").read_text() == "x"


def test_one_live_side_is_nothing_to_compare_with(tmp_path: Path):
    save_profile(linear(slots=8), tmp_path / "profile.yaml")
    kept = fidelity.Kept(loads=[0.4], warm=0, saturation_per_s=1.0, words=fidelity.WORDS, mix="apps")
    (tmp_path / "kept.json").write_bytes(msgspec.json.encode(kept))
    (tmp_path / "0.4.a.json").write_bytes(msgspec.json.encode([WENT]))
    with pytest.raises(ConfigError, match=r"no load was run live on both sides \(missing: .*0\.4\.b\.json\)"):
        fidelity.again(tmp_path, Report("fidelity", {}))
