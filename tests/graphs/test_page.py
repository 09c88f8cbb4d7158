"""What the page on graph services shows is run."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from safetensors.torch import save_file

from foreserve.appfile import load_app_file
from foreserve.graphs.making import GraphOptions, check
from tests.gateway.house import serving

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "graphs.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.M | re.S)


def _blocks(language: str) -> list[str]:
    return [body for kind, body in BLOCKS if kind == language]


def test_the_app_can_be_served(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text(_blocks("python")[0])
    index = np.array([[0, 1, 2], [1, 2, 0]])
    np.savez(tmp_path / "papers.npz", x=np.ones((3, 16), np.float32), edge_index=index)
    model = runpy.run_path(str(file))["Papers"]()
    save_file(model.state_dict(), tmp_path / "papers.safetensors")
    kind = load_app_file(str(file)).services["papers"]
    kind.check()
    assert check(msgspec.convert(kind.options(), GraphOptions)).refused is None


def test_the_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(_blocks("python")[1], "docs/graphs.md", "exec"), {})
    assert capsys.readouterr().out.startswith("tensor([[")


def test_the_requests_get_what_is_shown(tmp_path: Path) -> None:
    """On the example of typed payments, of which they are."""
    file = tmp_path / "fraud.py"
    file.write_text((ROOT / "examples" / "graphs" / "fraud.py").read_text())
    save_file(runpy.run_path(str(file))["Fraud"]().state_dict(), tmp_path / "fraud.safetensors")
    app = load_app_file(str(file))
    kind: Any = app.services["fraud"]
    kind.settings = msgspec.structs.replace(kind.settings, launcher="inline")
    shown = re.findall(r"curl localhost:8000(\S+) -d '(.*?)'\n# (.*?)\n", _blocks("sh")[0], re.S)
    assert [path for path, _, _ in shown] == ["/v1/graphs/fraud/updates", "/v1/graphs/fraud/query"]
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=60) as client:
        for path, body, answer in shown:
            made = client.post(path, json=json.loads(body))
            assert made.status_code == 200, made.text
            assert list(made.json()) == re.findall(r'"(\w+)":', answer)
            assert made.json()["version"] == 2
