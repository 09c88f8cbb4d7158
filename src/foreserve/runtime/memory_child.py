"""Runs a loader of weights, a user's code, in a process of its own and writes what it returns into an image.

`PYTHON bootstrap.py memory_child FD LOADER`. On standard output it says `{"bytes": N}` before it writes to the
descriptor, and goes on when a line comes; or `{"error": REASON}`. What the loader prints goes to standard error.

The process that is started only watches; the loader runs in a child of it. When the memory owner dies, however, all of
them end, with what the loader has started. When the loader ends, the owner ends what it has left.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys

from foreserve.errors import EngineStartError
from foreserve.runtime.ends import die_with_parent
from foreserve.runtime.factory import in_words, load_factory


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 when the image is whole."""
    if hasattr(os, "pidfd_open") and (pid := os.fork()) != 0:
        return watch(pid)
    return load(int(arguments[0]), arguments[1])


def watch(pid: int) -> int:
    """Until `pid` has ended: its exit code. Until the owner has: never, all that is in this session ends with it."""
    child = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(child, select.POLLIN)
    poller.register(0, 0)  # its end alone: what is said there is for the loader
    while not (told := dict(poller.poll())).get(child):
        if told.get(0):
            os.killpg(0, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        os.kill(os.getpid(), signal.SIGKILL)  # it was ended by a signal, and so are we
    return code


def load(fd: int, loader: str) -> int:
    """Returns the exit code."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    die_with_parent(True)

    def say(message: dict[str, object]) -> None:
        told.write(json.dumps(message) + "\n")
        told.flush()

    def room(size: int) -> None:
        say({"bytes": size})
        if not sys.stdin.readline():
            raise EngineStartError("the memory owner is gone")

    try:
        arrays = load_factory(loader)()
        # By name, since how arrays look inside is known to engines alone.
        images = importlib.import_module("foreserve.engines.arrays")
        with os.fdopen(fd, "wb", closefd=False) as file:
            images.write_image(file, arrays, loader, room)
    except BaseException as error:
        say({"error": in_words(loader, error)[:4000]})
        return 1
    return 0
