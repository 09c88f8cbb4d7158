"""What users of the official Node client rely on, against a real server. Needs node and npm."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.contract.conftest import KEY

HERE = Path(__file__).parent / "node"
PARTS = 12


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="node and npm are not installed")
def test_the_node_client(base_url: str, tmp_path: Path):
    for name in ("package.json", "contract.mjs"):
        shutil.copy(HERE / name, tmp_path)
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=tmp_path, check=True, timeout=100)
    command = ["node", "contract.mjs", base_url, KEY]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == PARTS
