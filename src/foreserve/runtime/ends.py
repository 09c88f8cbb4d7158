"""How processes end: with their parent, and with all that they have started."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading


def die_with_parent(yes: bool) -> None:
    """On Linux the kernel ends this process with its parent, even while an engine holds the interpreter's lock."""
    if sys.platform == "linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None, use_errno=True).prctl(parent_death_signal, signal.SIGKILL if yes else 0)


def end_after_parent() -> None:
    """On Linux this process ends once its parent has, in whatever way.

    Not by the kernel's word: that goes by the thread that has started us, which may end while the parent goes on.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    try:
        pidfd = os.pidfd_open(parent)
    except OSError:  # it has ended already, or this kernel has none
        return

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)

    def watch() -> None:
        poll.poll()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="foreserve-parent-watch", daemon=True).start()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def kill_group(pid: int) -> None:
    """End all that has been started in the session of `pid`."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
