import subprocess
import sys

from foreserve.runtime import bootstrap
from foreserve.runtime.bootstrap import NEEDED, refusal


def test_this_interpreter_can_be_a_worker():
    assert refusal() == ""


def test_a_refusal_names_interpreter_package_and_command(monkeypatch):
    monkeypatch.setitem(NEEDED, "not_there_at_all", "not-there")
    assert refusal() == (
        f"{sys.executable} lacks not-there, which a worker needs; "
        f"install with: {sys.executable} -m pip install not-there"
    )


def test_processes_that_an_engine_spawns_can_import_foreserve(tmp_path):
    """A spawned process runs the main file again as `__mp_main__`."""
    code = (
        "import runpy, sys; sys.modules.pop('foreserve', None)\n"
        f"runpy.run_path({bootstrap.__file__!r}, run_name='__mp_main__')\n"
        "import foreserve.core; print(foreserve.core.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip().endswith("foreserve/core.py")
