"""The house rules that a machine checks: each must find what it is there to find, in a copy of the package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


@pytest.fixture
def house(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return tmp_path


def imports(house: Path) -> subprocess.CompletedProcess[str]:
    """`lint-imports` as `make lint` runs it, but on the copy."""
    code = "import sys; sys.path.insert(0, 'src'); from importlinter.cli import lint_imports_command as main; main()"
    command = [sys.executable, "-c", code, "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=house, capture_output=True, text=True, timeout=60, check=False)


def ruff(house: Path, path: str) -> subprocess.CompletedProcess[str]:
    command = [BIN / "ruff", "check", "--no-cache", "--output-format=concise", path]
    return subprocess.run(command, cwd=house, capture_output=True, text=True, timeout=60, check=False)


def test_the_package_keeps_its_own_import_rules(house: Path) -> None:
    result = imports(house)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("dispatch", "from foreserve.gateway import anything", "Imports run one way"),
        ("engines", "import foreserve.fleet", "Imports run one way"),
        ("runtime", "import foreserve.engines.generation", "Imports run one way"),
        ("services", "from foreserve import app", "Imports run one way"),
        ("dispatch", "from foreserve.engines.generation import Generate", "know no engine"),
        ("services", "from foreserve.engines import heavy", "Engines are loaded by name"),
        ("runtime", "import numpy", "A worker needs"),
    ],
)
def test_an_import_against_the_direction_is_found(house: Path, module: str, line: str, contract: str) -> None:
    package = house / "src" / "foreserve"
    (package / module / "wrong.py").write_text(f'"""Wrong."""\n\n{line}\n')
    (package / "gateway" / "__init__.py").write_text('"""Has it."""\n\nanything = 1\n')
    (package / "engines" / "heavy.py").write_text('"""An engine."""\n')
    app = package / "app.py"
    if not app.exists():
        app.write_text('"""The app."""\n')
    result = imports(house)
    assert result.returncode == 1, result.stdout
    broken = " ".join(line for line in result.stdout.splitlines() if "BROKEN" in line)
    assert contract in broken, result.stdout
    assert f"foreserve.{module}.wrong" in result.stdout


def test_a_new_room_must_be_given_its_place(house: Path) -> None:
    (house / "src" / "foreserve" / "attic.py").write_text('"""A room nobody has thought of."""\n')
    result = imports(house)
    assert result.returncode != 0
    assert "attic" in result.stdout


@pytest.mark.parametrize("room", ["dispatch", "fleet", "simulation"])
@pytest.mark.parametrize(
    "code",
    [
        "import time\n\nx = time.time()\n",
        "from time import monotonic\n\nx = monotonic()\n",
        "import time as t\n\nx = t.perf_counter_ns()\n",
        "import random\n\nx = random.random()\n",
        "from random import choice\n\nx = choice([1])\n",
        "import numpy as np\n\nx = np.random.rand()\n",
        "from datetime import datetime\n\nx = datetime.now()\n",
    ],
)
def test_clocks_and_dice_are_banned(house: Path, room: str, code: str) -> None:
    (house / "src" / "foreserve" / room / "wrong.py").write_text(f'"""Wrong."""\n\n{code}')
    result = ruff(house, f"src/foreserve/{room}/wrong.py")
    assert result.returncode == 1, result.stdout
    assert "TID251" in result.stdout


def test_the_ban_lets_the_loop_and_seeded_generators_through(house: Path) -> None:
    code = '"""Right."""\n\nimport asyncio\n\nnow = asyncio.get_running_loop\n'
    (house / "src" / "foreserve" / "dispatch" / "right.py").write_text(code)
    assert ruff(house, "src/foreserve/dispatch/right.py").returncode == 0
