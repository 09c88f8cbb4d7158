"""One worker process that another process has forked for us: not our child, yet handled like one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import IO

from foreserve.fleet.process import WorkerProcess
from foreserve.runtime.ends import kill_group

TELL_S = 1.0
"""How long after its end its parent may take to tell how it ended, before that is taken for unknown."""


class ForkedProcess(WorkerProcess):
    """Owns `pidfd`, by which it is signalled and its end is seen even when its parent is gone.

    Its parent reaps it and ends its group before it does; `told` passes on what it says.
    """

    def __init__(
        self,
        name: str,
        pid: int,
        pidfd: int,
        stdin: IO[bytes],
        output: IO[bytes],
        ended: Callable[[int | None], None],
    ) -> None:
        super().__init__(name, pid, stdin, output, ended)
        self._pidfd = pidfd
        self._orphaned = False
        self._loop.add_reader(pidfd, self._noticed)

    def told(self, returncode: int | None) -> None:
        """It has ended, been reaped, and its group has been ended."""
        if self._alive:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._gone(returncode)

    def orphaned(self) -> None:
        """Its parent is gone: nobody will tell of its end."""
        self._orphaned = True

    def _terminate(self) -> None:
        self._send(signal.SIGTERM)

    def _kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass  # it has been reaped, and we shall hear of it

    def _noticed(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if self._orphaned:
            self._ended_alone()
        else:
            self._loop.call_later(TELL_S, self._ended_alone)

    def _ended_alone(self) -> None:
        if self._alive:
            kill_group(self.pid)  # while anything is left in its group, no other can have its number
            self.told(None)
