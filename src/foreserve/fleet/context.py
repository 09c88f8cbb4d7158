"""The gateway's side of one process that has imported what workers need, and forks them (`runtime.zygote`)."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import IO

import msgspec

from foreserve import clock
from foreserve.fleet.forked import Awaited, CannotFork, ForkedProcess
from foreserve.fleet.process import SpawnedProcess, how_it_ended
from foreserve.runtime import bootstrap, forking
from foreserve.runtime.forking import Ended, Fork, Forked, FromForker, Import, Imported, NotForked, from_forker

log = logging.getLogger(__name__)

IMPORT_LIMIT_S = 300.0
"""How long imports may take before such a process is given up."""

CLOSE_S = 2.0
"""How long it may take to end once it is let go."""


class ContextKey(msgspec.Struct, frozen=True):
    """What two workers must have in common to be forked out of one process: interpreter, imports, surroundings."""

    python: str
    imports: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str


class Context:
    """Starts the process at once; `fork` waits for its imports. `over()` is called once, when the process is gone.

    It is let go `keep_s` after its last worker has ended. Raises OSError when the interpreter cannot be run.
    """

    def __init__(self, name: str, key: ContextKey, keep_s: float, over: Callable[[], None]) -> None:
        self.key = key
        self.forks = 0
        self.last_fork_s: float | None = None
        """From asking for a worker until its process was there."""
        self.import_s: float | None = None
        """From the start of the interpreter to the end of its imports."""
        self.idle_since: float | None = None
        self.gone = asyncio.Event()
        self._name = name
        self._keep_s = keep_s
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._began = clock.precise()
        self._settled = asyncio.Event()
        self._refusal: CannotFork | None = None
        self._ids = itertools.count(1)
        self._waiting = 0
        self._asked: dict[int, Awaited] = {}
        self._workers: dict[int, ForkedProcess] = {}
        self._letting_go: asyncio.TimerHandle | None = None
        self._control, theirs = forking.pair()
        with theirs:
            command = [key.python, bootstrap.__file__, "zygote", str(theirs.fileno())]
            try:
                self._process = SpawnedProcess(name, command, dict(key.env), self._ended, (theirs.fileno(),))
            except OSError:
                self._control.close()
                raise
        self._control.setblocking(False)
        self._loop.add_reader(self._control.fileno(), self._readable)
        self._limit = self._loop.call_later(IMPORT_LIMIT_S, self._give_up, f"it imports for over {IMPORT_LIMIT_S:g} s")
        self._logging = self._loop.create_task(self._process.log_output())
        try:
            forking.send(self._control, Import(key.imports))
        except OSError as error:
            self._give_up(f"it cannot be told what to import: {error}")

    @property
    def pid(self) -> int:
        """Of the process that forks."""
        return self._process.pid

    @property
    def workers(self) -> int:
        """How many of its workers run."""
        return len(self._workers)

    @property
    def closing(self) -> bool:
        """Whether it takes no more."""
        return self._refusal is not None or self._control.fileno() < 0

    async def fork(
        self, name: str, wire: socket.socket, arguments: Sequence[str], env: dict[str, str], ended: Callable[..., None]
    ) -> ForkedProcess:
        """A worker at the other end of `wire`; `ended` as `WorkerProcess` has it. Raises CannotFork, OSError.

        Where this is cancelled, a worker that comes nevertheless is killed.
        """
        self._busy(1)
        try:
            await self._settled.wait()
            if self._refusal is not None:
                raise CannotFork(str(self._refusal), self._refusal.lasting)
            asked = self._ask(name, wire, arguments, env, ended)
            try:
                return await asked.process
            except asyncio.CancelledError:
                asked.abandon()
                raise
        finally:
            self._busy(-1)

    def close(self) -> None:
        """Let it go. Workers that it still has are ended."""
        self._refuse("it is let go")
        self._hang_up()
        if not self.gone.is_set():
            self._loop.call_later(0.0 if self.import_s is None else CLOSE_S, self._process.kill)

    # --- asking

    def _ask(
        self, name: str, wire: socket.socket, arguments: Sequence[str], env: dict[str, str], ended: Callable[..., None]
    ) -> Awaited:
        stdin, output = _pipe(), _pipe()
        asked = Awaited(name, stdin[1], output[0], ended)
        number = next(self._ids)
        with stdin[0] as its_stdin, output[1] as its_output:
            fds = (its_stdin.fileno(), its_output.fileno(), wire.fileno())
            try:
                forking.send(self._control, Fork(number, env, tuple(arguments)), fds)
            except OSError as error:
                asked.fail(f"it cannot be asked: {error}")
            else:
                self._asked[number] = asked
        return asked

    def _busy(self, change: int) -> None:
        self._waiting += change
        self._look()

    def _look(self) -> None:
        """Whether it is idle may have changed."""
        if self.gone.is_set():
            return
        idle = not self._waiting and not self._workers and not self._asked
        if idle == (self.idle_since is not None):
            return
        if self._letting_go is not None:
            self._letting_go.cancel()
        self.idle_since = self._loop.time() if idle else None
        self._letting_go = self._loop.call_later(self._keep_s, self.close) if idle else None

    # --- hearing

    def _readable(self) -> None:
        while self._control.fileno() >= 0:
            try:
                heard = forking.receive(self._control, from_forker)
            except BlockingIOError:
                return
            if heard is None:
                self._hang_up()
                self._loop.call_later(CLOSE_S, self._process.kill)
                return
            self._heard(*heard)

    def _heard(self, message: FromForker, fds: list[int]) -> None:
        match message:
            case Imported():
                self._limit.cancel()
                self.import_s = clock.precise() - self._began
                for module, why in message.skipped.items():
                    log.info("%s: the module %s is not imported beforehand: %s", self._name, module, why)
                if message.unfit:
                    self._refuse(message.unfit, lasting=True)
                    self._hang_up()
                self._settled.set()
            case Forked():
                self._forked(self._asked.pop(message.id), message.pid, fds[0])
            case NotForked():
                self._asked.pop(message.id).fail(message.reason)
            case Ended():
                self._workers.pop(message.pid).told(message.returncode)
        self._look()

    def _forked(self, asked: Awaited, pid: int, pidfd: int) -> None:
        self.forks += 1
        self.last_fork_s = clock.precise() - asked.at
        self._workers[pid] = asked.came(pid, pidfd)

    # --- its end

    def _refuse(self, reason: str, lasting: bool = False) -> None:
        if self._refusal is None:
            self._refusal = CannotFork(reason, lasting)
        self._limit.cancel()
        self._settled.set()

    def _give_up(self, reason: str) -> None:
        self._refuse(reason)
        self._process.kill()

    def _hang_up(self) -> None:
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()

    def _ended(self, returncode: int | None) -> None:
        if self._control.fileno() >= 0:
            self._readable()  # what it has said before
        words = self._process.last_words(1)
        self._refuse(f"it has ended: {how_it_ended(returncode)}" + (f"; its last words: {words}" if words else ""))
        self._hang_up()
        self._process.close()
        for asked in self._asked.values():
            asked.fail(str(self._refusal))
        self._asked.clear()
        for worker in self._workers.values():
            worker.orphaned()
        self._workers.clear()
        if self._letting_go is not None:
            self._letting_go.cancel()
        self.gone.set()
        self._over()


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)
