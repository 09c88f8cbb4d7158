from __future__ import annotations

import os
import subprocess
import sys

import pytest

from foreserve.runtime.fitness import changed, mark, working_folder
from foreserve.runtime.forking import unsupported


def looked(code: str) -> str:
    """What a new process finds left behind after `code`."""
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
from foreserve.runtime.fitness import descriptors, left_behind
before = set(descriptors())
{code}
print(left_behind(before))
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(bool(unsupported()), reason=unsupported())
@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import colorsys", ""),
        ("kept = open('/dev/null')", ""),
        ("kept = open('/proc/self/status')", "its imports have opened /proc/"),
        ("import os; kept = os.pipe()", "its imports have opened pipe:"),
        ("import subprocess; kept = subprocess.Popen(['true'])", "its imports have started a process"),
        (
            "import threading; threading.Thread(target=threading.Event().wait, name='pump', daemon=True).start()",
            "its imports have started threads: pump",
        ),
    ],
)
def test_what_an_import_leaves_behind(code, why):
    found = looked(code)
    assert found.startswith(why)
    assert bool(found) == bool(why)


def test_changed_variables(monkeypatch):
    monkeypatch.setenv("FITNESS_SAME", "1")
    monkeypatch.setenv("FITNESS_OTHER", "1")
    monkeypatch.setenv("FITNESS_GONE", "1")
    before = dict(os.environ)
    assert changed(before) == {}
    monkeypatch.setenv("FITNESS_OTHER", "2")
    monkeypatch.setenv("FITNESS_NEW", "2")
    monkeypatch.delenv("FITNESS_GONE")
    found = changed(before)
    assert found.keys() == {"FITNESS_OTHER", "FITNESS_NEW", "FITNESS_GONE"}
    assert found["FITNESS_OTHER"] == found["FITNESS_NEW"] != found["FITNESS_GONE"] == 0


def test_the_mark_is_another_once_a_folder_of_the_path_has_changed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    first = mark()
    assert mark() == first
    os.utime(tmp_path, ns=(0, 10**9))
    second = mark()
    assert second != first
    monkeypatch.chdir(tmp_path)  # the working folder is the user's own
    third = mark()
    os.utime(tmp_path, ns=(0, 2 * 10**9))
    assert mark() == third


def test_a_working_folder_that_is_gone(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert working_folder() == str(folder)
    folder.rmdir()
    assert working_folder() == ""
