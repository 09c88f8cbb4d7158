"""The process that forks, spoken to as the gateway does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from foreserve.runtime import bootstrap, forking
from foreserve.runtime.forking import Ended, Fork, Forked, Import, Imported, from_forker, receive, send, unsupported
from foreserve.runtime.zygote import import_all

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

    def fork(self, **env: str) -> tuple[Forked, socket.socket, int]:
        """The answer, the worker's wire, and its output."""
        ours, theirs = socket.socketpair()
        output, its_output = os.pipe()
        stdin, self.stdin = os.pipe()
        send(self.control, Fork(7, env, ("1000000", "INFO")), (stdin, its_output, theirs.fileno()))
        theirs.close()
        os.close(its_output)
        os.close(stdin)
        self.fds += [output, self.stdin]
        forked = self.hears()
        assert isinstance(forked, Forked)
        return forked, ours, output

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
    assert zygote.hears() == Imported({})
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
    assert gateway.hears() == Imported({})
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
