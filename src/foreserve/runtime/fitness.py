"""Whether this process may fork workers after what it has imported, and what its imports depended on."""

from __future__ import annotations

import hashlib
import os
import select
import sys
import threading
import zlib
from collections.abc import Collection, Mapping
from typing import Final

from foreserve.runtime.forking import unsupported

_SHARED: Final = ("socket:", "pipe:", "anon_inode:", "/dev/nvidia", "/dev/dri", "/dev/kfd")
"""What a descriptor of an import must not be: two processes would read each other's answers or break a device."""

_HARMLESS: Final = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")

_LOOKS: Final = 50
_LOOK_S: Final = 0.01
"""A thread that has been joined is listed a moment longer."""


def unfit(before: Collection[str] = ()) -> str:
    """Why this process must not fork, in words; empty when it may. It had the descriptors `before` its imports.

    Forks once to see, which ends the threads of libraries that are made for it.
    """
    if reason := unsupported():
        return reason
    if others := [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]:
        return f"its imports have started threads: {', '.join(others[:5])}"
    opened = {fd: name for fd, name in descriptors().items() if fd not in before}
    if held := [name for name in opened.values() if name.startswith(_SHARED)]:
        return f"its imports have opened what two processes cannot share: {', '.join(held[:5])}"
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    for _ in range(_LOOKS):
        if (count := _tasks()) == 1:
            return ""
        select.select([], [], [], _LOOK_S)
    return f"its imports have started {count - 1} threads of a native library"


def left_behind(before: Collection[str]) -> str:
    """What an import has left behind that must not be there, in words; empty for most, and cheap then.

    Stricter than `unfit`: any file that stays open counts, since what is written to it by several would mix, and any
    process that has been started. This process must have had no children and the descriptors `before`.
    """
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        pass
    else:
        return "its imports have started a process"
    opened = [name for fd, name in descriptors().items() if fd not in before and not name.startswith(_HARMLESS)]
    if opened:
        return f"its imports have opened {', '.join(opened[:5])}"
    return "" if _tasks() == 1 else unfit(before)


def descriptors() -> dict[str, str]:
    """What each number stands for."""
    names = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            names[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # that of the listing itself
    return names


def changed(before: Mapping[str, str]) -> dict[str, int]:
    """Environment variables that are otherwise than `before`, each with a check sum of its value (0: unset)."""
    now = dict(os.environ)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return {name: zlib.crc32(now[name].encode(errors="replace")) if name in now else 0 for name in names}


def mark() -> str:
    """Of this interpreter and of the folders that it imports from: another once a package comes, goes or changes.

    Installers write folders named after the version, which shows in the time of change of the folder around them.
    """
    words = [sys.version, sys.executable]
    for folder in set(sys.path) - {"", working_folder()}:
        try:
            words.append(f"{folder}@{os.stat(folder).st_mtime_ns}")
        except OSError:
            pass  # many have a zip file on the path that is not there
    return hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()[:32]


def working_folder() -> str:
    """Empty where it has been deleted."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _tasks() -> int:
    return len(os.listdir("/proc/self/task"))
