"""The process that forks, spoken to as the gateway does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from foreserve.runtime import bootstrap, forking
from foreserve.runtime.forking import (
    Ended,
    Fork,
    Forked,
    Import,
    Imported,
    Importing,
    NotForked,
    from_forker,
    receive,
    send,
    unsupported,
)
from foreserve.runtime.zygote import import_all, import_warily

pytestmark = pytest.mark.skipif(bool(unsupported()), reason=unsupported())


class Gateway:
    """One zygote, and what it says."""

    def __init__(self, *modules: str, **env: str) -> None:
        self.control, theirs = forking.pair()
        self.control.settimeout(20)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, bootstrap.__file__, "zygote", str(theirs.fileno())],
                env={**os.environ, **env},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self.fds: list[int] = []
        send(self.control, Import(modules))

    def hears(self):
        heard = receive(self.control, from_forker)
        if heard is None:
            return None
        self.fds += heard[1]
        return heard[0]

    def fork(self, heir: bool = False, **env: str) -> tuple[Forked, socket.socket, int]:
        """The answer, the worker's wire, and its output."""
        answer, ours, output = self.asks(heir, **env)
        assert isinstance(answer, Forked)
        return answer, ours, output

    def asks(self, heir: bool = False, **env: str):
        """The same, whatever the answer is."""
        ours, theirs = forking.pair() if heir else socket.socketpair()
        output, its_output = os.pipe()
        stdin, self.stdin = os.pipe()
        send(self.control, Fork(7, env, ("1000000", "INFO"), heir), (stdin, its_output, theirs.fileno()))
        theirs.close()
        os.close(its_output)
        os.close(stdin)
        self.fds += [output, self.stdin]
        return self.hears(), ours, output

    def inherit(self) -> Gateway:
        """The same of an heir of this one."""
        child = Gateway.__new__(Gateway)
        forked, child.control, _ = self.fork(heir=True)
        child.control.settimeout(20)
        child.pid, child.fds = forked.pid, []
        return child

    def close(self) -> None:
        self.control.close()
        self.process.wait(20)
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def zygote():
    gateway = Gateway("colorsys")
    yield gateway
    gateway.close()


def test_it_forks_workers_and_tells_how_they_end(zygote):
    imported = zygote.hears()
    assert isinstance(imported, Imported)
    assert (imported.skipped, imported.unfit, imported.variables) == ({}, "", {})
    forked, wire, output = zygote.fork()
    assert forked.id == 7
    wire.close()  # a worker ends with its connection
    assert zygote.hears() == Ended(forked.pid, 0)
    assert b"the gateway is gone" in os.read(output, 10_000)
    forked, wire, _ = zygote.fork()
    os.kill(forked.pid, signal.SIGSEGV)
    assert zygote.hears() == Ended(forked.pid, -signal.SIGSEGV)
    wire.close()


def test_a_worker_has_a_descriptor_of_its_own_life(zygote):
    zygote.hears()
    forked, wire, _ = zygote.fork()
    (pidfd,) = zygote.fds[-1:]
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert zygote.hears() == Ended(forked.pid, -signal.SIGKILL)
    wire.close()


def test_a_worker_that_cannot_be_watched_is_none(tmp_path):
    (tmp_path / "short_of_descriptors.py").write_text(
        "import os\nopened, refused = os.pidfd_open, []\n"
        "def refuses(pid):\n"
        "    if pid == os.getpid() or refused:\n"
        "        return opened(pid)\n"
        "    refused.append(pid)\n"
        "    raise OSError(24, 'Too many open files')\n"
        "os.pidfd_open = refuses\n"
    )
    zygote = Gateway("short_of_descriptors", PYTHONPATH=str(tmp_path))
    assert zygote.hears().skipped == {}
    answer, wire, _ = zygote.asks()
    wire.close()
    assert answer == NotForked(7, "what was forked cannot be watched: Too many open files")
    forked, wire, _ = zygote.fork()  # and it goes on
    wire.close()
    assert zygote.hears() == Ended(forked.pid, 0)
    zygote.close()


def test_it_ends_with_its_gateway_and_so_do_its_workers(zygote):
    zygote.hears()
    _, wire, output = zygote.fork()
    zygote.control.close()
    assert zygote.process.wait(20) == 0
    assert os.read(output, 10_000) == b""  # killed: it had no time to say anything
    wire.close()


def test_a_gateway_that_ends_at_once():
    gateway = Gateway()
    gateway.close()
    assert gateway.process.returncode == 0


def test_matrix_libraries_yield_to_a_fork():
    pytest.importorskip("numpy")
    gateway = Gateway("numpy", OPENBLAS_NUM_THREADS="4")
    assert gateway.hears().unfit == ""
    gateway.close()


def test_what_modules_import_later_is_imported_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "zygote_a.py").write_text("IMPORTED_LATER = ('zygote_b', 'zygote_a')")
    (tmp_path / "zygote_b.py").write_text("IMPORTED_LATER = ['zygote_a', 'zygote_missing']; import sys")
    assert import_all(["zygote_a", "zygote_raises"]) == {
        "zygote_raises": "ModuleNotFoundError: No module named 'zygote_raises'",
        "zygote_missing": "ModuleNotFoundError: No module named 'zygote_missing'",
    }
    for name in ("zygote_a", "zygote_b"):
        del sys.modules[name]


def test_an_heir_imports_more_forks_and_outlives_who_forked_it(zygote, tmp_path):
    zygote.hears()
    heir = zygote.inherit()
    send(heir.control, Import(("wave", "colorsys", "nowhere_at_all"), wary=True))
    assert [heir.hears(), heir.hears()] == [Importing("wave"), Importing("nowhere_at_all")]
    imported = heir.hears()
    assert imported.unfit == ""
    assert imported.skipped == {"nowhere_at_all": "ModuleNotFoundError: No module named 'nowhere_at_all'"}
    zygote.control.close()
    assert zygote.process.wait(20) == 0
    forked, wire, _ = heir.fork()
    wire.close()
    assert heir.hears() == Ended(forked.pid, 0)
    heir.control.close()
    for fd in heir.fds:
        os.close(fd)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import threading; threading.Thread(target=threading.Event().wait, name='pump', daemon=True).start()", "pump"),
        ("import _thread, threading; _thread.start_new_thread(threading.Event().wait, ())", "threads of a native"),
        ("import socket; kept = socket.socket()", "socket:"),
        ("import tempfile; kept = open(__file__)", "bad_one.py"),
        ("import subprocess; kept = subprocess.Popen(['sleep', '0.1'])", "started a process"),
    ],
)
def test_an_heir_stops_at_the_module_that_leaves_it_unfit(tmp_path, code, why):
    (tmp_path / "bad_one.py").write_text(code)
    gateway = Gateway(PYTHONPATH=str(tmp_path))
    gateway.hears()
    heir = gateway.inherit()
    send(heir.control, Import(("colorsys", "bad_one", "wave"), wary=True))
    assert [heir.hears(), heir.hears()] == [Importing("colorsys"), Importing("bad_one")]
    assert why in heir.hears().unfit
    heir.control.close()
    assert gateway.hears() == Ended(heir.pid, 0)
    gateway.close()


def test_an_heir_tells_what_its_imports_set_and_ends_with_who_forked_it_while_they_last(tmp_path):
    (tmp_path / "sets.py").write_text("import os; os.environ['SET_BY_IMPORT'] = '1'")
    (tmp_path / "hangs.py").write_text("import select; select.select([], [], [], 60)")
    gateway = Gateway(PYTHONPATH=str(tmp_path))
    gateway.hears()
    one, other = gateway.inherit(), gateway.inherit()
    send(one.control, Import(("sets",), wary=True))
    assert one.hears() == Importing("sets")
    assert one.hears().variables.keys() == {"SET_BY_IMPORT"}
    send(other.control, Import(("hangs",), wary=True))
    assert other.hears() == Importing("hangs")
    gateway.close()
    assert gateway.process.returncode == 0
    assert other.hears() is None
    for heir in (one, other):
        heir.control.close()


def test_imports_that_are_there_are_not_looked_at_again():
    told: list[str] = []
    assert import_warily(["os", "sys"], told.append, lambda: "never asked") == ({}, "")
    assert told == []
