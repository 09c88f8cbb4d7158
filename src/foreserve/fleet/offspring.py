"""What a context has forked and has been asked to fork, in the gateway's books."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Sequence
from typing import IO

from foreserve import clock
from foreserve.fleet.forked import Awaited, CannotFork, ForkedProcess, ForkLost
from foreserve.runtime import forking
from foreserve.runtime.forking import Ended, Fork, Forked, NotForked


class Offspring:
    """Of one context. An heir is a context itself, no worker: it may outlive the one that it comes from."""

    def __init__(self) -> None:
        self.forks = 0
        """Workers that have come."""
        self.last_fork_s: float | None = None
        """From asking for a worker until its process was there."""
        self._ids = itertools.count(1)
        self._asked: dict[int, Awaited] = {}
        self._running: dict[int, ForkedProcess] = {}
        self._heirs: set[int] = set()

    @property
    def workers(self) -> int:
        """How many run."""
        return len(self._running) - len(self._heirs)

    @property
    def idle(self) -> bool:
        """Whether there are no workers, and nothing is asked for."""
        return not self.workers and not self._asked

    def ask(
        self,
        control: socket.socket,
        name: str,
        wire: socket.socket,
        arguments: Sequence[str],
        env: dict[str, str],
        ended: Callable[[int | None], None],
        heir: bool,
    ) -> Awaited:
        """Ask for one by the context's line; see `forking.Fork`."""
        number = next(self._ids)
        stdin, output = _pipe(), _pipe()
        asked = Awaited(name, stdin[1], output[0], ended, heir)
        with stdin[0] as its_stdin, output[1] as its_output:
            fds = (its_stdin.fileno(), its_output.fileno(), wire.fileno())
            try:
                forking.send(control, Fork(number, env, tuple(arguments), heir), fds)
            except OSError as error:
                asked.fail(CannotFork(f"it cannot be asked: {error}"))
            else:
                self._asked[number] = asked
        return asked

    def heard(self, message: Forked | NotForked | Ended, fds: Sequence[int]) -> None:
        """What the context says of one of them."""
        match message:
            case Forked() if not fds:
                # It ends by itself: the other end of its line is closed with this.
                self._asked.pop(message.id).fail(CannotFork("it cannot be watched: this process can open no more"))
            case Forked():
                self._came(self._asked.pop(message.id), message.pid, fds[0])
            case NotForked():
                self._asked.pop(message.id).fail(CannotFork(message.reason))
            case Ended():
                self._heirs.discard(message.pid)
                if (process := self._running.pop(message.pid, None)) is not None:
                    process.told(message.returncode)

    def orphan(self, reason: str) -> None:
        """The context is gone: what it has not told of will not come, and what runs ends untold."""
        for asked in self._asked.values():
            asked.fail(ForkLost(reason))
        for process in self._running.values():
            process.orphaned()
        for each in (self._asked, self._running, self._heirs):
            each.clear()

    def _came(self, asked: Awaited, pid: int, pidfd: int) -> None:
        if asked.heir:
            self._heirs.add(pid)
        else:
            self.forks += 1
            self.last_fork_s = clock.precise() - asked.at
        self._running[pid] = asked.came(pid, pidfd)


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)
