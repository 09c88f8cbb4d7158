"""A process that has imported what its workers need and forks them: `bootstrap.py zygote FD`, run as a worker is.

A fork copies a process in milliseconds where an interpreter, its imports and a framework take seconds; and what the
copies only read stays one copy in memory. It is right only for a process that runs one thread and holds nothing that
two must not share, so this one does nothing but import, and says so when an import has left it unfit: workers are then
started as new interpreters.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from foreserve.runtime import worker
from foreserve.runtime.ends import die_with_parent, kill_group
from foreserve.runtime.forking import (
    Ended,
    Fork,
    Forked,
    Import,
    Imported,
    NotForked,
    ToForker,
    receive,
    send,
    to_forker,
    unsupported,
)  # fmt: skip

IMPORTED_LATER = "IMPORTED_LATER"
"""What a module may have: the names of modules that it imports when it is used rather than when it is imported."""

_SHARED = ("socket:", "pipe:", "anon_inode:", "/dev/nvidia", "/dev/dri", "/dev/kfd")
"""What a descriptor of an import must not be: two processes would read each other's answers or break a device."""

_LOOKS = 50
_LOOK_S = 0.01
"""A thread that has been joined is listed a moment longer."""


class Zygote:
    """Forks workers as the gateway at the other end of `control` asks, and reaps them. Runs one thread."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._before = set(_descriptors())
        self._on_child: Any = signal.SIG_DFL
        self._poller = select.poll()
        self._poller.register(control, select.POLLIN)
        self._children: dict[int, int] = {}
        """Process numbers by pidfd."""

    def serve(self) -> list[str] | None:
        """Returns more than once, as a fork does: in each worker its arguments, and `None` when the gateway is gone."""
        try:
            while True:
                for fd, _ in self._poller.poll():
                    if fd != self._control.fileno():
                        self._reap(fd)
                    elif (heard := receive(self._control, to_forker)) is None:
                        raise ConnectionResetError
                    elif (arguments := self._heard(*heard)) is not None:
                        return arguments
        except ConnectionError:
            # No worker outlives its gateway: what holds its interpreter's lock cannot see by itself that we are gone.
            for pid in self._children.values():
                _sweep(pid)
            return None

    def _heard(self, message: ToForker, fds: list[int]) -> list[str] | None:
        match message:
            case Import():
                skipped = import_all(message.modules)
                self._on_child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # nobody else shall reap workers
                reason = unfit(self._before)
                gc.collect()
                gc.freeze()  # a collection in a worker shall not write to what it shares with the others
                die_with_parent(False)  # from here on that end is seen, and workers are ended first
                send(self._control, Imported(skipped, reason))
            case Fork():
                return self._fork(message, fds)
        return None

    def _fork(self, message: Fork, fds: list[int]) -> list[str] | None:
        _flush()
        try:
            pid = os.fork()
        except OSError as error:
            _close(fds)
            send(self._control, NotForked(message.id, f"no process can be forked: {error.strerror}"))
            return None
        if pid == 0:
            return self._become_worker(message, fds)
        _close(fds)
        pidfd = os.pidfd_open(pid)  # it is ours to reap, so its number is still its own
        self._children[pidfd] = pid
        self._poller.register(pidfd, select.POLLIN)
        send(self._control, Forked(message.id, pid), [pidfd])
        return None

    def _become_worker(self, message: Fork, fds: list[int]) -> list[str]:
        """In the child: be as a new interpreter would be after its imports."""
        os.setsid()
        signal.signal(signal.SIGCHLD, self._on_child)
        self._control.close()
        _close(self._children)
        stdin, output, wire = fds
        os.dup2(stdin, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        _close((stdin, output))
        os.environ.update(message.env)
        _draw_anew()
        return [str(wire), *message.arguments]

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._poller.unregister(pidfd)
        os.close(pidfd)
        _sweep(pid)  # before it is reaped: its number cannot be another group's yet
        returncode = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        send(self._control, Ended(pid, returncode))


def main(arguments: Sequence[str]) -> int:
    """`FD`. Returns the exit code, in this process and in each worker that it has forked."""
    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking whether there is a GPU shall not open it
    die_with_parent(True)  # an import may hold on for long, and cannot be told of the gateway's end
    forked = Zygote(control).serve()
    if forked is None:
        os._exit(0)  # what imports do at an exit is their workers' to do
    sys.argv[1:] = forked
    return worker.run(forked)


def import_all(modules: Sequence[str]) -> dict[str, str]:
    """Import them, and what they say they import later. Returns those that cannot be, and why."""
    skipped: dict[str, str] = {}
    names = list(modules)
    for name in names:  # grows as modules name others
        try:
            later = getattr(importlib.import_module(name), IMPORTED_LATER, ())
            names += [each for each in later if each not in names]
        except (Exception, SystemExit) as error:
            skipped[name] = f"{type(error).__name__}: {error}"[:200]
    return skipped


def unfit(before: Collection[str] = ()) -> str:
    """Why this process must not fork, in words; empty when it may. It had the descriptors `before` its imports.

    Forks once to see, which ends the threads of libraries that are made for it.
    """
    if reason := unsupported():
        return reason
    if others := [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]:
        return f"its imports have started threads: {', '.join(others[:5])}"
    opened = {fd: name for fd, name in _descriptors().items() if fd not in before}
    if held := [name for name in opened.values() if name.startswith(_SHARED)]:
        return f"its imports have opened what two processes cannot share: {', '.join(held[:5])}"
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    for _ in range(_LOOKS):
        if (count := len(os.listdir("/proc/self/task"))) == 1:
            return ""
        select.select([], [], [], _LOOK_S)
    return f"its imports have started {count - 1} threads of a native library"


def _descriptors() -> dict[str, str]:
    """What each number stands for."""
    names = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            names[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # that of the listing itself
    return names


def _draw_anew() -> None:
    """Random numbers of copies shall differ. Python's own generator sees to it; numpy's would go on alike in each.

    PyTorch's begins with the same seed in every process, forked or not, so it is left as it is.
    """
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _flush() -> None:
    """What is still to be written would be written again by every copy."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # an import has closed or replaced it
    ctypes.CDLL(None).fflush(None)


def _sweep(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)  # it may not have a group of its own yet
    kill_group(pid)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
