"""The command against a real server."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from tests.cli.live import serve
from typer.testing import CliRunner

from foreserve.cli.main import app
from foreserve.cli.top import screen

run = CliRunner().invoke

APP = """
import foreserve as fs

@fs.function
def double(n: int) -> int:
    return 2 * n

app = fs.App(double=double, state={"history": False})
"""


def test_once_and_as_json(tmp_path: Path):
    (tmp_path / "app.py").write_text(APP)
    with serve(tmp_path, str(tmp_path / "app.py")) as live:
        at = ["--gateway", live.url]
        shown = run(app, ["top", "--once", *at], env={"COLUMNS": "160"})
        assert shown.exit_code == 0
        for words in ("double", "running", "Pss", "memory (Pss)"):
            assert words in shown.output
        assert "restore" not in shown.output  # nothing shares weights
        told = json.loads(run(app, ["top", "--json", *at]).output)
        assert [(one["name"], one["stage"], one["ready"]) for one in told["services"]] == [("double", "running", 1)]
        assert str(told["workers"][0]["pid"]) in shown.output


def _screen(ready: int, source: str = "w.safetensors") -> str:
    service = {"name": "s", "kind": "function", "stage": "running", "ready": ready, "references": 0}
    entry = {"source": source, "state": "ready", "bytes": 2**20, "references": 1, "hits": 0, "restore_s": 0.5}
    entry["device"] = None
    owner = {"pid": 4711, "loads": 1, "hits": 0, "uploads": 0, "entries": [entry]}
    told = {
        "services": [service | {"pays": [], "return_s": {}}],
        "workers": [],
        "weights": owner,
        "hit_rate": None,
        "contexts": [],
        "totals": dict.fromkeys(("all_bytes", "workers_bytes", "contexts_bytes", "owner_bytes"), 0),
    }
    console = Console(width=80)
    with console.capture() as shown:
        console.print(screen(told))
    return shown.get()


def test_the_owner_of_weights_has_its_process_named():
    assert "owner 4711: loads 1, hits 0" in _screen(1)


def test_nothing_is_cut_in_80_columns():
    shown = _screen(1, "/srv/models/with/a/long/path/w.safetensors")
    assert "…" not in shown


def test_who_waits_for_a_first_worker_pays_its_start():
    assert "a start" in _screen(0)
    assert "nothing" in _screen(1)


def test_a_gateway_that_does_not_answer_is_named():
    refused = run(app, ["top", "--once", "--gateway", "http://127.0.0.1:1"])
    assert refused.exit_code == 2
    assert "http://127.0.0.1:1 cannot be asked" in refused.output
    assert run(app, ["top", "--every", "0.1"]).exit_code == 2
