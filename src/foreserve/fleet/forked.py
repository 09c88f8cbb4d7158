"""One worker process that another process has forked for us: not our child, yet handled like one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import IO

from foreserve import clock
from foreserve.fleet.process import WorkerProcess
from foreserve.runtime.ends import kill_group

TELL_S = 1.0
"""How long after its end its parent may take to tell how it ended, before that is taken for unknown."""


class CannotFork(Exception):
    """A worker has to be started as a new interpreter, and why. `lasting`: it would be so the next time as well."""

    def __init__(self, reason: str, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


class ForkLost(Exception):
    """Who was to fork a worker has ended, and may have forked it: nobody else may have what was meant for that one."""


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


class Awaited:
    """One that has been asked for: `process` has it once it is there, or raises CannotFork or ForkLost.

    An `heir` is no worker.
    """

    def __init__(
        self, name: str, stdin: IO[bytes], output: IO[bytes], ended: Callable[[int | None], None], heir: bool
    ) -> None:
        self.name, self.stdin, self.output, self.ended, self.heir = name, stdin, output, ended, heir
        self.at = clock.precise()
        self.process: asyncio.Future[ForkedProcess] = asyncio.get_running_loop().create_future()

    def came(self, pid: int, pidfd: int) -> ForkedProcess:
        """It is there; killed at once where nobody waits for it any more."""
        process = ForkedProcess(self.name, pid, pidfd, self.stdin, self.output, lambda code: self.ended(code))
        if self.process.done():
            self._kill(process)
        else:
            self.process.set_result(process)
        return process

    def abandon(self) -> None:
        """Nobody waits for it any more; it may have come already."""
        if not self.process.cancelled() and self.process.exception() is None:
            self._kill(self.process.result())

    def _kill(self, process: ForkedProcess) -> None:
        self.ended = lambda _: None
        process.kill()
        process.close()

    def fail(self, why: Exception) -> None:
        """It will not come."""
        self.stdin.close()
        self.output.close()
        if not self.process.done():
            self.process.set_exception(why)
