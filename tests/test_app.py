import subprocess
import sys
from pathlib import Path

APP = """
import foreserve as fs

@fs.function(route="/rank")
def rank(query: str) -> str:
    return query

app = fs.App(rank=rank)
"""


def test_an_app_file_of_functions_loads_nothing_of_the_gateway(tmp_path: Path):
    """Every function's worker imports it, also in an interpreter that has msgspec alone."""
    (tmp_path / "mine.py").write_text(APP)
    code = "import mine, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    modules = set(done.stdout.split())
    assert "foreserve.app" in modules
    assert not {"foreserve.running", "aiohttp", "fastapi", "numpy", "pydantic"} & modules
