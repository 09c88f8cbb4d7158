"""What a worker process may write to, and what it gives back when it is idle.

A bound is the kernel's (RLIMIT_DATA): an allocation beyond it fails in the call that asked for it, as MemoryError, and
the others go on. What it cannot catch, memory that is held beyond the bound for good, ends the engine in words, so that
the fleet starts a new one.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys

from foreserve.runtime.footprint import writable

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

RESERVE_BYTES = 64 << 20
"""What may be reserved beyond the bound. The kernel counts what is reserved, used or not, such as 8 MiB for the stack
of each thread that starts later; and a call at its bound shall leave the worker room for its own messages."""

LOOKS = 3
"""Looks in a row that must find more in use than the bound: a call on its way to a MemoryError is no leak yet."""

TRIM_S = 5.0
"""How long a worker must have been idle before it gives memory back."""


class Upkeep:
    """Of this process's memory. `started` once the engine is ready, then `look` every second or so; both are cheap."""

    def __init__(self) -> None:
        self._most: int | None = None
        self._bound = 0
        self._over = 0
        self._idle_since: float | None = None
        self._trimmed = False

    def started(self, memory_bytes: int | None, raises: bool = True) -> None:
        """From now on at most `memory_bytes` more may be written to than is now; read-only mappings do not count.

        Without `raises` nothing is refused by the kernel: for engines whose allocator ends the process where it is.
        """
        now = writable()
        if memory_bytes is None or now is None:
            return
        self._bound, self._most = memory_bytes, now.used + memory_bytes
        if raises:
            _limit(now.reserved + memory_bytes + RESERVE_BYTES)

    def look(self, idle: bool, now: float) -> str | None:
        """Why the engine has to be ended, if it has. Memory is given back once in each stretch of idleness.

        `now` is in seconds on any steady clock.
        """
        if not idle:
            self._idle_since, self._trimmed = None, False
        elif self._idle_since is None:
            self._idle_since = now
        elif not self._trimmed and now - self._idle_since >= TRIM_S:
            self._trimmed = True
            trim()
        return self._beyond()

    def _beyond(self) -> str | None:
        if self._most is None or (now := writable()) is None:
            return None
        self._over = self._over + 1 if now.used > self._most else 0
        if self._over < LOOKS:
            return None
        more = now.used - self._most + self._bound
        return (
            f"it holds {more >> 20} MiB more than when it was ready; its `memory_bytes` are {self._bound} "
            f"({self._bound >> 20} MiB)"
        )


def trim() -> None:
    """Give memory that is free in this process back to the system: what requests have left behind.

    Takes about a millisecond. Where imports are looked through as well, as in a worker that was not forked, a full
    collection takes a tenth of a second, so there the oldest generation is left to the interpreter.
    """
    gc.collect(2 if gc.get_freeze_count() else 1)
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except AttributeError:
            pass  # not glibc; others give memory back by themselves


def _limit(most: int) -> None:
    if resource is None or sys.platform != "linux":
        return  # elsewhere it bounds little of what is allocated
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    except (OSError, ValueError) as error:
        log.warning("memory is watched and not limited: %s", error)
