"""The command against a real server."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.live import serve
from typer.testing import CliRunner

from foreserve.cli.main import app

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
        for words in ("double", "running", "Pss", "no owner runs", "memory (Pss)"):
            assert words in shown.output
        told = json.loads(run(app, ["top", "--json", *at]).output)
        assert [(one["name"], one["stage"], one["ready"]) for one in told["services"]] == [("double", "running", 1)]
        assert str(told["workers"][0]["pid"]) in shown.output


def test_a_gateway_that_does_not_answer_is_named():
    refused = run(app, ["top", "--once", "--gateway", "http://127.0.0.1:1"])
    assert refused.exit_code == 2
    assert "http://127.0.0.1:1 cannot be asked" in refused.output
    assert run(app, ["top", "--every", "0.1"]).exit_code == 2
