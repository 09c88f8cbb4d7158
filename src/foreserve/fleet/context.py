"""The gateway's side of one process that has imported what workers need, and forks them (`runtime.zygote`)."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence

import msgspec

from foreserve import clock
from foreserve.fleet.forked import CannotFork, ForkedProcess
from foreserve.fleet.offspring import Offspring
from foreserve.fleet.process import SpawnedProcess, WorkerProcess, how_it_ended
from foreserve.runtime import bootstrap, forking
from foreserve.runtime.forking import FromForker, Import, Imported, Importing, from_forker

log = logging.getLogger(__name__)

CLOSE_S = 2.0
"""How long it may take to end once it is let go."""


class ContextKey(msgspec.Struct, frozen=True):
    """What two workers must have in common to be forked out of one process: interpreter, imports, surroundings.

    `learns` is whether it may also import what they are seen to import.
    """

    python: str
    imports: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    learns: bool = True


class Context:
    """Begun once, by `spawn` or `grow`. `fork` waits for its imports.

    `changed()` is called when its imports are done, when it may have become idle, and when it is `gone`.
    """

    def __init__(self, name: str, key: ContextKey, changed: Callable[[], None]) -> None:
        self.key = key
        self.name = name
        self.offspring = Offspring()
        self.import_s: float | None = None
        """From the start of the process to the end of its imports."""
        self.imported: Imported | None = None
        self.importing = ""
        """The module that it has said to come next."""
        self.refusal: CannotFork | None = None
        """Why it takes no more workers."""
        self.settled = asyncio.Event()
        """Set once it can fork, or cannot."""
        self.gone = asyncio.Event()
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._began = clock.precise()
        self._process: WorkerProcess | None = None
        self._control: socket.socket | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._logging: asyncio.Task[None] | None = None

    def spawn(self, limit_s: float) -> None:
        """Begin it as a new interpreter that has `limit_s` for the imports of its key. Raises OSError if none can be
        run.
        """
        ours, theirs = forking.pair()
        with theirs:
            command = [self.key.python, bootstrap.__file__, "zygote", str(theirs.fileno())]
            try:
                process = SpawnedProcess(self.name, command, dict(self.key.env), self._ended, (theirs.fileno(),))
            except OSError:
                ours.close()
                raise
        self._begin(process, ours, Import(self.key.imports), limit_s)

    async def grow(self, parent: Context, modules: Sequence[str], limit_s: float) -> None:
        """Begin it as a copy of `parent` that imports `modules` too, and outlives it. Raises CannotFork, OSError."""
        ours, theirs = forking.pair()
        try:
            with theirs:
                process = await parent.fork(self.name, theirs, (), {}, self._ended, heir=True)
        except BaseException:
            ours.close()
            self.gone.set()
            raise
        self._begin(process, ours, Import(tuple(modules), wary=True), limit_s)

    @property
    def pid(self) -> int:
        """Of the process that forks."""
        assert self._process is not None
        return self._process.pid

    @property
    def closing(self) -> bool:
        """Whether it takes no more."""
        return self.refusal is not None or self._control is None

    async def fork(
        self,
        name: str,
        wire: socket.socket,
        arguments: Sequence[str],
        env: dict[str, str],
        ended: Callable[[int | None], None],
        *,
        heir: bool = False,
    ) -> ForkedProcess:
        """A worker at the other end of `wire`; `ended` as `WorkerProcess` has it. Raises CannotFork, ForkLost, OSError.

        An `heir` is a process that forks itself. Where this is cancelled, one that comes nevertheless is killed.
        """
        await self.settled.wait()
        if self.refusal is not None:
            raise CannotFork(str(self.refusal), self.refusal.lasting)
        if self._control is None:
            raise CannotFork("it is ending")
        asked = self.offspring.ask(self._control, name, wire, arguments, env, ended, heir)
        try:
            return await asked.process
        except asyncio.CancelledError:
            asked.abandon()
            raise

    def close(self) -> None:
        """Let it go. Workers that it still has are ended."""
        self._refuse("it is let go")
        self._hang_up()
        if self._process is not None and not self.gone.is_set():
            self._loop.call_later(0.0 if self.import_s is None else CLOSE_S, self._process.kill)

    # --- its beginning

    def _begin(self, process: WorkerProcess, control: socket.socket, wanted: Import, limit_s: float) -> None:
        self._process, self._control = process, control
        control.setblocking(False)
        self._loop.add_reader(control.fileno(), self._readable)
        self._limit = self._loop.call_later(limit_s, self._give_up, f"it imports for over {limit_s:g} s")
        self._logging = self._loop.create_task(process.log_output())
        try:
            forking.send(control, wanted)
        except OSError as error:
            self._give_up(f"it cannot be told what to import: {error}")

    # --- hearing

    def _readable(self) -> None:
        while self._control is not None:
            try:
                heard = forking.receive(self._control, from_forker)
            except BlockingIOError:
                return
            if heard is None:
                self._hang_up()
                assert self._process is not None
                self._loop.call_later(CLOSE_S, self._process.kill)
                return
            self._heard(*heard)

    def _heard(self, message: FromForker, fds: list[int]) -> None:
        match message:
            case Importing():
                self.importing = message.module
                return
            case Imported():
                self._has_imported(message)
            case _:
                self.offspring.heard(message, fds)
        self._changed()

    def _has_imported(self, message: Imported) -> None:
        assert self._limit is not None
        self._limit.cancel()
        self.import_s = clock.precise() - self._began
        self.imported = message
        for module, why in message.skipped.items():
            log.info("%s: the module %s is not imported beforehand: %s", self.name, module, why)
        if message.unfit:
            self._refuse(message.unfit, lasting=True)
            self._hang_up()
        self.settled.set()

    # --- its end

    def _refuse(self, reason: str, lasting: bool = False) -> None:
        if self.refusal is None:
            self.refusal = CannotFork(reason, lasting)
        if self._limit is not None:
            self._limit.cancel()
        self.settled.set()

    def _give_up(self, reason: str) -> None:
        self._refuse(reason)
        assert self._process is not None
        self._process.kill()

    def _hang_up(self) -> None:
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    def _ended(self, returncode: int | None) -> None:
        if self._control is not None:
            self._readable()  # what it has said before
        assert self._process is not None
        words = self._process.last_words(1)
        self._refuse(f"it has ended: {how_it_ended(returncode)}" + (f"; its last words: {words}" if words else ""))
        self._hang_up()
        self._process.close()
        self.offspring.orphan(str(self.refusal))
        self.gone.set()
        self._changed()
