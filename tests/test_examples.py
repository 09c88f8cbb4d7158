"""The example files are read, checked, and do what they say."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from foreserve.appfile import load_app_file
from tests.gateway.house import serving

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_a_function_in_five_lines():
    app = load_app_file(str(EXAMPLES / "function.py"))
    with serving(app) as house:
        asked = {"query": "blue sky", "documents": ["a blue car", "the sky is blue"]}
        assert httpx.post(f"{house.url}/rank", json=asked, timeout=20).json() == [1, 2]


@pytest.mark.slow
def test_a_torch_model_on_shared_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("HOME", str(tmp_path))
    app = load_app_file(str(EXAMPLES / "torch_function.py"))
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=60) as client:
        assert client.post("/digit", json={"pixels": [0.5] * 64}).json() in range(10)
        short = client.post("/digit", json={"pixels": [0.5] * 63})
        assert (short.status_code, "length >= 64" in short.json()["error"]["message"]) == (400, True)
