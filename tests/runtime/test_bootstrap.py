import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing ends it")
def test_processes_that_an_engine_spawns_end_with_it():
    """Also where it is killed and nobody is left to sweep its group; not with the thread that has started them."""
    code = (
        "import multiprocessing, sys, threading, time\n"
        f"sys.modules['__main__'].__file__ = {bootstrap.__file__!r}\n"
        "made = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(60,), daemon=True)\n"
        "thread = threading.Thread(target=made.start); thread.start(); thread.join()\n"
        "print(made.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        spawned = int(parent.stdout.readline())
        _within(30, lambda: _threads(spawned) > 1)
        time.sleep(0.2)
        assert not _ended(spawned)
        parent.kill()
    _within(30, lambda: _ended(spawned))


def _threads(pid):
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def _ended(pid):
    """A process that nobody reaps stays in the table, as a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def _within(seconds, happens):
    until = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.05)
