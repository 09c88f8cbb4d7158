"""How processes end: with their parent, and with all that they have started."""

from __future__ import annotations

import ctypes
import os
import signal
import sys


def die_with_parent(yes: bool) -> None:
    """On Linux the kernel ends this process with its parent, even while an engine holds the interpreter's lock."""
    if sys.platform == "linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None, use_errno=True).prctl(parent_death_signal, signal.SIGKILL if yes else 0)


def kill_group(pid: int) -> None:
    """End all that has been started in the session of `pid`."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
