"""The processes out of which workers are forked, one for each interpreter, imports and environment."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from foreserve.clock import offload
from foreserve.core import EngineSpec
from foreserve.fleet.context import Context, ContextKey
from foreserve.fleet.forked import CannotFork, ForkedProcess
from foreserve.fleet.learned import Remembered
from foreserve.fleet.lineage import Lineage
from foreserve.fleet.process import surroundings
from foreserve.messages import ImportedLater
from foreserve.runtime.fitness import working_folder
from foreserve.runtime.footprint import Footprint, footprint
from foreserve.runtime.forking import unsupported

log = logging.getLogger(__name__)

MOST_CONTEXTS = 8
MOST_REFUSED = 256
"""Keys of which it is remembered that they cannot fork."""

RETRY_S = 300.0
"""How long a process that has died in its imports keeps others from being tried in its place."""

WORTH_S = 0.1
"""How long a worker must have taken from its fork until it was ready, for its imports to be learned."""

OF_ONE_WORKER = ("FORESERVE_MEMORY",)
"""Variables that are each worker's own: nothing that is imported reads them."""


class ContextStats(msgspec.Struct, frozen=True, kw_only=True):
    """One process that forks. Seconds are durations; `idle_s` is since when it and those of its key have no worker.

    `import_s` is from the interpreter's start to the end of its imports (`None`: not there yet), `last_fork_s` from
    asking for a worker until its process was there. `pss_bytes` is its part of the memory that it shares with its
    workers, and all of what is its own; `None` where it is not told.
    """

    interpreter: str
    imports: tuple[str, ...]
    pid: int
    workers: int
    forks: int
    import_s: float | None
    last_fork_s: float | None
    idle_s: float | None
    pss_bytes: int | None


class Contexts:
    """Each is started at the first launch that wants it, and let go `keep_s` after its last worker has ended.

    There are at most `most` keys; the one that has been idle longest makes room for a new one. Where one cannot fork,
    or none can be had, the caller starts a new interpreter; why is logged once for each key. With `remembered` they
    import what their workers import before they are ready, if that takes `worth_s`, and what is remembered there.
    """

    def __init__(
        self,
        keep_s: float = 1800.0,
        most: int = MOST_CONTEXTS,
        remembered: Remembered | None = None,
        worth_s: float = WORTH_S,
    ) -> None:
        self._keep_s = keep_s
        self._most = most
        self._remembered = remembered
        self._worth_s = worth_s
        self._lineages: dict[ContextKey, Lineage] = {}
        self._leaving: set[Lineage] = set()
        self._refused: OrderedDict[ContextKey, float] = OrderedDict()
        """Until when (loop time) each is not to be tried."""
        self._numbers = itertools.count(1)
        self._unsupported = unsupported()
        if self._unsupported:
            log.info("each worker is started as a new interpreter: %s", self._unsupported)

    async def fork(
        self,
        name: str,
        spec: EngineSpec,
        wire: socket.socket,
        arguments: Sequence[str],
        ended: Callable[[int | None], None],
    ) -> ForkedProcess | None:
        """A worker of `spec` at the other end of `wire`, or `None` where it has to be a new interpreter.

        Waits while its context imports, which takes as long as a new interpreter would. Safe to cancel. Raises
        ForkLost.
        """
        key, own = _key(spec)
        lineage = self._lineage(key)
        if lineage is None:
            return None
        try:
            return await lineage.fork(name, wire, arguments, own, ended)
        except (CannotFork, OSError) as error:
            imported = lineage.newest.import_s is not None
            if not imported or (isinstance(error, CannotFork) and error.lasting):
                self._refuse(key, str(error), imported)
            else:
                log.warning("%s is started as a new interpreter: %s", name, error)
            return None

    def heard(self, spec: EngineSpec, later: ImportedLater) -> None:
        """A worker of `spec` that was forked has imported this."""
        if (lineage := self._lineages.get(_key(spec)[0])) is not None:
            lineage.heard(later, spec.own)

    async def recall(self) -> None:
        """Take up what is remembered: before the first launch, which may then have it."""
        if self._remembered is not None:
            await offload(self._remembered.load)

    def warm(self, spec: EngineSpec) -> None:
        """Begin to import what such workers want, so that the first of them need not wait for it. Returns at once."""
        self._lineage(_key(spec)[0])

    def up(self, spec: EngineSpec) -> bool:
        """Whether such a worker would be forked at once: its process has all imports."""
        lineage = self._lineages.get(_key(spec)[0])
        return lineage is not None and lineage.up

    @property
    def lineages(self) -> list[Lineage]:
        """One for each key of which there is any."""
        return list(self._lineages.values())

    @property
    def all(self) -> list[Context]:
        """Those that take workers, or have some still."""
        return [context for lineage in self.lineages for context in lineage.contexts]

    async def stats(self) -> tuple[ContextStats, ...]:
        """Of each that is there."""
        now = asyncio.get_running_loop().time()
        every = [(one, each) for each in self.lineages for one in each.contexts]
        pids = [context.pid for context, _ in every]
        footprints = await offload(lambda: [footprint(pid) for pid in pids])
        return tuple(_stats(*each, one, now) for each, one in zip(every, footprints, strict=True))

    async def close(self) -> None:
        """Let all go, and wait until they are gone. Workers that are left are ended."""
        lineages = [*self.lineages, *self._leaving]
        for lineage in lineages:
            lineage.close()
        for lineage in lineages:
            await lineage.closed()

    def _lineage(self, key: ContextKey) -> Lineage | None:
        if self._unsupported or self._refused.get(key, -math.inf) > asyncio.get_running_loop().time():
            return None
        lineage = self._lineages.get(key)
        if lineage is not None and not lineage.closing:
            return lineage
        if lineage is None and not self._make_room(key):
            return None
        name = f"context-{next(self._numbers)}"
        try:
            made = Lineage(name, key, self._keep_s, lambda: self._changed(made), self._remembered, self._worth_s)
        except OSError:
            return None  # it is told when the worker is started by itself
        log.info("%s imports %s for workers of %s", name, ", ".join(key.imports) or "nothing but ours", key.python)
        if lineage is not None:
            self._leaving.add(lineage)
        self._lineages[key] = made
        return made

    def _make_room(self, key: ContextKey) -> bool:
        if len(self._lineages) < self._most:
            return True
        idle = [lineage for lineage in self._lineages.values() if lineage.idle_since is not None]
        if not idle:
            self._refuse(key, f"there are {self._most} processes that fork, and all have workers")
            return False
        oldest = min(idle, key=lambda lineage: lineage.idle_since or 0.0)
        oldest.close()
        self._leaving.add(self._lineages.pop(oldest.key))
        return True

    def _changed(self, lineage: Lineage) -> None:
        if not lineage.gone:
            return
        log.info("%s is gone", lineage.name)
        self._leaving.discard(lineage)
        if self._lineages.get(lineage.key) is lineage:
            del self._lineages[lineage.key]

    def _refuse(self, key: ContextKey, reason: str, lasting: bool = False) -> None:
        now = asyncio.get_running_loop().time()
        if self._refused.get(key, -math.inf) <= now:
            words = ", ".join(key.imports) or "no imports"
            log.warning("workers of %s with %s are started as new interpreters: %s", key.python, words, reason)
        self._refused[key] = math.inf if lasting else now + RETRY_S
        self._refused.move_to_end(key)
        if len(self._refused) > MOST_REFUSED:
            self._refused.popitem(last=False)


def _stats(context: Context, lineage: Lineage, memory: Footprint | None, now: float) -> ContextStats:
    idle_since = lineage.idle_since
    return ContextStats(
        interpreter=context.key.python,
        imports=context.key.imports,
        pid=context.pid,
        workers=context.offspring.workers,
        forks=context.offspring.forks,
        import_s=context.import_s,
        last_fork_s=context.offspring.last_fork_s,
        idle_s=None if idle_since is None else now - idle_since,
        pss_bytes=None if memory is None else memory.pss,
    )


def _key(spec: EngineSpec) -> tuple[ContextKey, dict[str, str]]:
    """What workers of `spec` have in common, and which variables each has for itself."""
    python, env = surroundings(spec)
    own = {name: env.pop(name) for name in OF_ONE_WORKER if name in env}
    imports, variables = tuple(dict.fromkeys(spec.imports)), tuple(sorted(env.items()))
    return ContextKey(python, imports, variables, working_folder(), spec.learn), own
