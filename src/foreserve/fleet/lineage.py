"""The contexts of one key, each a copy of the one before that has imported more: the newest forks.

What workers import before they are ready is imported in a copy that nobody waits for. Where that copy is fit to be
forked it takes over, and the one before leaves with its last worker; where it is not, it is ended and nothing else has
changed, but that the module at fault is not tried again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Final

from foreserve.clock import offload
from foreserve.fleet.context import Context, ContextKey
from foreserve.fleet.forked import CannotFork, ForkedProcess
from foreserve.fleet.learned import Learned, Remembered
from foreserve.messages import ImportedLater

log = logging.getLogger(__name__)

IMPORT_LIMIT_S: Final = 300.0
"""How long the imports of a key may take before its process is given up."""

LEARN_LIMIT_S: Final = 60.0
"""How long a copy may take to import what was learned."""

MOST_COPIES: Final = 8
"""Copies that are tried in the life of a lineage: each costs what its imports cost."""

PATIENCE: Final = 3.0
PATIENCE_S: Final = 1.0
"""The first worker waits for imports that are remembered, for this many times what they took before, and this more."""


class Lineage:
    """Begins its first context at once. `changed()` is called when it may have become idle, and when it is gone.

    It is let go `keep_s` after its last worker has ended. Raises OSError when the interpreter cannot be run. With
    `remembered` it learns from workers that were not ready `worth_s` after their fork.
    """

    def __init__(
        self,
        name: str,
        key: ContextKey,
        keep_s: float,
        changed: Callable[[], None],
        remembered: Remembered | None = None,
        worth_s: float = 0.0,
    ) -> None:
        self.key = key
        self.name = name
        self.idle_since: float | None = None
        self._keep_s = keep_s
        self._tell = changed
        self._remembered = remembered if key.learns else None
        self._learned = Learned(python=key.python, imports=key.imports)
        self._worth_s = worth_s
        self._loop = asyncio.get_running_loop()
        self._waiting = 0
        self._letting_go: asyncio.TimerHandle | None = None
        self._copies = 0
        self._copying: asyncio.Task[None] | None = None
        self._hope: asyncio.Event | None = None
        """There while a copy imports what is remembered to go well."""
        self._there: set[str] = set()
        """What the newest has imported of what was learned."""
        self._by_imports: dict[str, int] = {}
        self._by_workers: dict[str, int] = {}
        """Variables that were changed by what was learned, and by workers, with check sums of their values."""
        self._before: list[Context] = []
        """The older ones, which still have workers."""
        self._sure: frozenset[str] = frozenset()
        """What the last copy that failed had imported well."""
        self._failed: list[Context] = []
        """Copies that were no good and have not quite gone."""
        self._keeping: asyncio.Task[None] | None = None
        self._newest = Context(name, key, self._changed)
        self._newest.spawn(IMPORT_LIMIT_S)

    # --- what it is

    @property
    def contexts(self) -> list[Context]:
        """Those that have workers or take them; the newest is the last."""
        return [*self._before, self._newest]

    @property
    def newest(self) -> Context:
        """The one that forks."""
        return self._newest

    @property
    def up(self) -> bool:
        """Whether a worker would be forked at once."""
        return not self.closing and self._newest.import_s is not None and self._hope is None

    @property
    def closing(self) -> bool:
        """Whether it takes no more workers."""
        return self._newest.closing

    @property
    def gone(self) -> bool:
        """Whether nothing of it is left."""
        return self._copying is None and all(context.gone.is_set() for context in self._all)

    @property
    def _all(self) -> list[Context]:
        return [*self._failed, *self.contexts]

    # --- what is asked of it

    async def fork(
        self,
        name: str,
        wire: socket.socket,
        arguments: Sequence[str],
        env: dict[str, str],
        ended: Callable[[int | None], None],
    ) -> ForkedProcess:
        """As `Context.fork`, by the newest."""
        self._waiting += 1
        self._look()
        try:
            await self._newest.settled.wait()
            if self._hope is not None:
                await self._hope.wait()
            return await self._newest.fork(name, wire, arguments, env, ended)
        finally:
            self._waiting -= 1
            self._look()

    def heard(self, later: ImportedLater, own: str) -> None:
        """What one of its workers has imported before it was ready. What is in the package `own` is left to it."""
        if self._remembered is None or later.seconds < self._worth_s:
            return
        self._by_workers |= later.variables
        if self._there and self._refused():
            self._keep()
        self._learned.add(name for name in later.modules if not own or name.partition(".")[0] != own)
        self._learn()

    def close(self) -> None:
        """Let all go. Workers that are left are ended."""
        if self._copying is not None:
            self._copying.cancel()
        for context in self.contexts:
            context.close()

    async def closed(self) -> None:
        """When all are gone, after `close`."""
        for task in (self._copying, self._keeping):
            if task is not None:
                await asyncio.wait([task])
        for context in self._all:
            await context.gone.wait()

    # --- learning

    def _recall(self) -> None:
        """Its imports are done, so that it is known whether what is remembered still holds."""
        assert self._newest.imported is not None
        assert self._remembered is not None
        self._learned = self._remembered.of(self.key.python, self.key.imports)
        self._learned.under(self._newest.imported.mark)
        took = self._learned.took_s
        self._learn()
        if took is not None and self._copying is not None:
            self._hope = asyncio.Event()
            self._loop.call_later(PATIENCE_S + PATIENCE * took, self._despair)

    def _despair(self) -> None:
        if self._hope is not None:
            self._hope.set()
            self._hope = None

    def _learn(self) -> None:
        """Begin a copy, where there is something that it would have and the newest has not."""
        missing = self._learned.missing(self._there)
        if self._copies == MOST_COPIES - 1 and self._sure:
            missing = tuple(name for name in missing if name in self._sure)
        if self._copying is None and missing and self._copies < MOST_COPIES and not self.closing:
            self._copies += 1
            self._copying = self._loop.create_task(self._copy(missing))
            self._copying.add_done_callback(self._copied)

    async def _copy(self, modules: tuple[str, ...]) -> None:
        heir = Context(f"{self.name}+{self._copies}", self.key, self._changed)
        try:
            await heir.grow(self._newest, modules, LEARN_LIMIT_S)
            await heir.settled.wait()
            if self._fits(heir, modules):
                self._adopt(heir, modules)
        finally:
            if heir is not self._newest:
                heir.close()
                self._failed.append(heir)
            self._despair()

    def _fits(self, heir: Context, modules: tuple[str, ...]) -> bool:
        """Whether it may take over. If not, the module at fault is not tried again; raises CannotFork if none is."""
        done = heir.imported
        if done is not None and not done.unfit:
            self._learned.bad |= done.skipped
            self._by_imports |= done.variables
            return not self._refused()
        log.info("%s: the module %s is not imported beforehand: %s", self.name, heir.importing, heir.refusal)
        if not heir.importing or self.closing:
            raise CannotFork(str(heir.refusal))
        self._learned.bad[heir.importing] = str(heir.refusal)
        self._sure = frozenset(modules[: modules.index(heir.importing)])
        return False

    def _refused(self) -> bool:
        """Whether workers set variables that their imports do not: modules may read those when they are imported."""
        foreign = sorted(name for name, _ in self._by_workers.items() - self._by_imports.items())
        if foreign and not self._learned.refused:
            self._learned.refused = f"workers set {', '.join(foreign[:5])} before they are ready"
            log.info("%s: what its workers import is left to them: %s", self.name, self._learned.refused)
        return bool(self._learned.refused)

    def _adopt(self, heir: Context, modules: tuple[str, ...]) -> None:
        before = (self._learned.took_s or 0.0) if self._there else 0.0
        self._learned.took_s = before + (heir.import_s or 0.0)
        self._there.update(modules)
        self._before.append(self._newest)
        self._newest = heir
        log.info("%s takes over from %s: it has imported what workers import", heir.name, self._before[-1].name)

    def _copied(self, task: asyncio.Task[None]) -> None:
        self._copying = None
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.warning("%s: what its workers import is left to them: %s", self.name, error)
            self._copies = MOST_COPIES
        self._keep()
        self._learn()  # what has come meanwhile, or all but the module at fault
        self._changed()

    def _keep(self) -> None:
        """Write down what is known, soon."""
        if (remembered := self._remembered) is not None:
            kept = remembered.snapshot(self._learned)
            self._keeping = self._loop.create_task(offload(lambda: remembered.keep(kept)))

    # --- its life

    def _changed(self) -> None:
        """A context of it has imported, lost a worker, or gone."""
        newest = self._newest
        if self._remembered is not None and newest.imported is not None and not self.closing and not self._learned.mark:
            self._recall()
        self._failed = [context for context in self._failed if not context.gone.is_set()]
        for context in [*self._before]:
            if context.gone.is_set():
                self._before.remove(context)
            elif context.idle and not context.closing:
                context.close()
        if newest.gone.is_set() and self._before and not self._before[-1].closing:
            self._newest = self._before.pop()  # one that knows less is better than none
            self._there.clear()
        self._look()
        self._tell()

    def _look(self) -> None:
        """Whether it is idle may have changed."""
        idle = not self._waiting and all(context.idle for context in self.contexts)
        if idle == (self.idle_since is not None):
            return
        if self._letting_go is not None:
            self._letting_go.cancel()
        self.idle_since = self._loop.time() if idle else None
        self._letting_go = self._loop.call_later(self._keep_s, self.close) if idle and not self.gone else None
