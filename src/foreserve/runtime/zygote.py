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
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from foreserve.runtime import worker
from foreserve.runtime.ends import die_with_parent, kill_group
from foreserve.runtime.fitness import changed, descriptors, left_behind, mark, unfit
from foreserve.runtime.forking import (
    MOST_TOLD,
    Ended,
    Fork,
    Forked,
    Import,
    Imported,
    Importing,
    NotForked,
    ToForker,
    receive,
    send,
    to_forker,
)  # fmt: skip

IMPORTED_LATER = "IMPORTED_LATER"
"""What a module may have: the names of modules that it imports when it is used rather than when it is imported."""


class Child(NamedTuple):
    """What a forked process is to be: a worker with these arguments, or, without any, an heir with this line."""

    wire: int
    arguments: list[str] | None


class Zygote:
    """Forks workers as the gateway at the other end of `control` asks, and reaps them. Runs one thread."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._before = set(descriptors())
        self._on_child: Any = signal.SIG_DFL
        self._poller = select.poll()
        self._poller.register(control, select.POLLIN)
        self._children: dict[int, int] = {}
        """Process numbers by pidfd."""
        self._heirs: set[int] = set()
        """Those of them that are none of our workers, and end by their own lines."""

    def serve(self) -> Child | None:
        """Returns more than once, as a fork does: in each child what it is to be; `None` when the gateway is gone."""
        try:
            while True:
                for fd, _ in self._poller.poll():
                    if fd != self._control.fileno():
                        self._reap(fd)
                    elif (heard := receive(self._control, to_forker)) is None:
                        raise ConnectionResetError
                    elif (child := self._heard(*heard)) is not None:
                        return child
        except ConnectionError:
            # No worker outlives its gateway: what holds its interpreter's lock cannot see by itself that we are gone.
            for pid in set(self._children.values()) - self._heirs:
                _sweep(pid)
            return None

    def _heard(self, message: ToForker, fds: list[int]) -> Child | None:
        match message:
            case Import():
                send(self._control, self._import(message))
            case Fork():
                return self._fork(message, fds)
        return None

    def _import(self, message: Import) -> Imported:
        variables = dict(os.environ)
        if message.wary:
            skipped, reason = import_warily(message.modules, self._tell, lambda: left_behind(self._before))
        else:
            skipped, reason = import_all(message.modules), ""
        self._on_child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # nobody else shall reap workers
        reason = reason or unfit(self._before)
        gc.collect()
        gc.freeze()  # a collection in a worker shall not write to what it shares with the others
        die_with_parent(False)  # from here on that end is seen, and workers are ended first
        return Imported(dict(list(skipped.items())[:MOST_TOLD]), reason, changed(variables), mark())

    def _tell(self, module: str) -> None:
        send(self._control, Importing(module))

    def _fork(self, message: Fork, fds: list[int]) -> Child | None:
        if not fds:
            send(self._control, NotForked(message.id, "its descriptors did not arrive: no more can be open here"))
            return None
        _flush()
        try:
            pid = os.fork()
        except OSError as error:
            _close(fds)
            send(self._control, NotForked(message.id, f"no process can be forked: {error.strerror}"))
            return None
        if pid == 0:
            return self._become(message, fds)
        _close(fds)
        try:
            pidfd = os.pidfd_open(pid)  # it is ours to reap, so its number is still its own
        except OSError as error:
            _sweep(pid)
            os.waitpid(pid, 0)
            send(self._control, NotForked(message.id, f"what was forked cannot be watched: {error.strerror}"))
            return None
        self._children[pidfd] = pid
        if message.heir:
            self._heirs.add(pid)
        self._poller.register(pidfd, select.POLLIN)
        send(self._control, Forked(message.id, pid), [pidfd])
        return None

    def _become(self, message: Fork, fds: list[int]) -> Child:
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
        return Child(wire, None if message.heir else [*message.arguments])

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._heirs.discard(pid)
        self._poller.unregister(pidfd)
        os.close(pidfd)
        _sweep(pid)  # before it is reaped: its number cannot be another group's yet
        returncode = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        send(self._control, Ended(pid, returncode))


def main(arguments: Sequence[str]) -> int:
    """`FD`. Returns the exit code, in this process and in each worker that it has forked."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking whether there is a GPU shall not open it
    line = int(arguments[0])
    while True:
        control = socket.socket(fileno=line)
        control.set_inheritable(False)
        die_with_parent(True)  # an import may hold on for long, and cannot be told of the gateway's end
        child = Zygote(control).serve()
        if child is None:
            os._exit(0)  # what imports do at an exit is their workers' to do
        if child.arguments is not None:
            break
        line = child.wire
    sys.argv[1:] = [str(child.wire), *child.arguments]
    return worker.run(sys.argv[1:], forked=True)


def import_all(modules: Sequence[str]) -> dict[str, str]:
    """Import them, and what they say they import later. Returns those that cannot be, and why."""
    skipped: dict[str, str] = {}
    names = list(modules)
    for name in names:  # grows as modules name others
        try:
            later = getattr(importlib.import_module(name), IMPORTED_LATER, ())
            names += [each for each in later if each not in names]
        except (Exception, SystemExit) as error:
            skipped[name] = _in_words(error)
    return skipped


def import_warily(
    modules: Sequence[str], tell: Callable[[str], None], left: Callable[[], str]
) -> tuple[dict[str, str], str]:
    """Import them one by one, until one has `left` behind what may not be. Returns those that cannot be, and that.

    `tell` hears the name of each before, unless an earlier one has imported it: should this process not come back from
    it, that is the one.
    """
    skipped: dict[str, str] = {}
    for name in modules:
        if name in sys.modules:
            continue
        tell(name)
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            skipped[name] = _in_words(error)
        if reason := left():
            return skipped, reason
    return skipped, ""


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]


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
