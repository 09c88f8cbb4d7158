"""Copies of a context that import what its workers were seen to import: which are made, and which is fit to take over.

Nobody waits for a copy, but for one that imports what is remembered to have gone well. Where a copy is not fit to be
forked it is ended and nothing else has changed, but that the module at fault is not tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from foreserve.clock import offload
from foreserve.fleet.context import Context, ContextKey
from foreserve.fleet.forked import CannotFork
from foreserve.fleet.learned import Learned, Remembered
from foreserve.messages import ImportedLater

log = logging.getLogger(__name__)

LEARN_LIMIT_S: Final = 60.0
"""How long a copy may take to import what was learned."""

MOST_COPIES: Final = 8
"""Copies that are tried for one lineage: each costs what its imports cost."""

PATIENCE: Final = 3.0
PATIENCE_S: Final = 1.0
"""Workers wait for imports that are remembered, for this many times what they took before, and this more."""


class Learner:
    """For the lineage `name`, whose newest context is `newest()`. A copy that is fit is told to `adopt`.

    `changed()` is called as `Context` has it, and when a copy is over. It learns from workers that were not ready
    `worth_s` after their fork.
    """

    def __init__(
        self,
        name: str,
        key: ContextKey,
        remembered: Remembered,
        worth_s: float,
        newest: Callable[[], Context],
        adopt: Callable[[Context], None],
        changed: Callable[[], None],
    ) -> None:
        self.learned = Learned(python=key.python, imports=key.imports)
        self.there: set[str] = set()
        """What the newest has imported of what was learned."""
        self.copying: asyncio.Task[None] | None = None
        self.keeping: asyncio.Task[None] | None = None
        self._name = name
        self._key = key
        self._remembered = remembered
        self._worth_s = worth_s
        self._newest = newest
        self._adopt = adopt
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._copies = 0
        self._hope: asyncio.Event | None = None
        """There while a copy imports what is remembered."""
        self._by_imports: dict[str, int] = {}
        self._by_workers: dict[str, int] = {}
        """Variables that were changed by what was learned, and by workers, with check sums of their values."""
        self._sure: frozenset[str] = frozenset()
        """What the last copy that failed had imported well."""
        self._failed: list[Context] = []
        """Copies that were no good and have not quite gone."""

    @property
    def hopes(self) -> bool:
        """Whether a worker had better wait: what it would import itself is being imported."""
        return self._hope is not None

    async def hoped(self) -> None:
        """Until there is nothing to wait for."""
        if self._hope is not None:
            await self._hope.wait()

    @property
    def gone(self) -> bool:
        """Whether nothing is left of any copy that has not been adopted."""
        return self.copying is None and all(context.gone.is_set() for context in self._failed)

    def recall(self, mark: str) -> None:
        """The imports of the first context are done; what is remembered holds if it was learned under this `mark`."""
        if self.learned.mark:
            return
        self.learned = self._remembered.of(self._key.python, self._key.imports)
        self.learned.under(mark)
        took = self.learned.took_s
        self._learn()
        if took is not None and self.copying is not None:
            self._hope = asyncio.Event()
            self._loop.call_later(PATIENCE_S + PATIENCE * took, self._despair)

    def heard(self, later: ImportedLater, own: str) -> None:
        """What a worker has imported before it was ready. What is in the package `own` is left to it."""
        if later.seconds < self._worth_s:
            return
        self._by_workers |= later.variables
        if self.there and self._refused():
            self._keep()
        self.learned.add(name for name in later.modules if not own or name.partition(".")[0] != own)
        self._learn()

    def close(self) -> None:
        """Make no more copies."""
        self._copies = MOST_COPIES
        if self.copying is not None:
            self.copying.cancel()

    async def closed(self) -> None:
        """When all that was begun is over, after `close`."""
        for task in (self.copying, self.keeping):
            if task is not None:
                await asyncio.wait([task])
        for context in self._failed:
            await context.gone.wait()

    # --- copies

    def _learn(self) -> None:
        """Begin a copy, where there is something that it would have and the newest has not."""
        missing = self.learned.missing(self.there)
        if self._copies == MOST_COPIES - 1 and self._sure:
            missing = tuple(name for name in missing if name in self._sure)
        if self.copying is None and missing and self._copies < MOST_COPIES and not self._newest().closing:
            self._copies += 1
            self.copying = self._loop.create_task(self._copy(missing))
            self.copying.add_done_callback(self._copied)

    async def _copy(self, modules: tuple[str, ...]) -> None:
        copy = Context(f"{self._name}+{self._copies}", self._key, self._changed)
        try:
            await copy.grow(self._newest(), modules, LEARN_LIMIT_S)
            await copy.settled.wait()
            fits = self._fits(copy, modules)
        except BaseException:
            self._end(copy)
            raise
        if not fits:
            self._end(copy)
            return
        before = (self.learned.took_s or 0.0) if self.there else 0.0
        self.learned.took_s = before + (copy.import_s or 0.0)
        self.there.update(modules)
        self._adopt(copy)

    def _fits(self, copy: Context, modules: tuple[str, ...]) -> bool:
        """Whether it may take over. If not, the module at fault is not tried again; raises CannotFork if none is."""
        done = copy.imported
        if done is not None and not done.unfit:
            self.learned.bad |= done.skipped
            self._by_imports |= done.variables
            return not self._refused()
        if not copy.importing or self._newest().closing:
            raise CannotFork(str(copy.refusal))
        log.info("%s: the module %s is not imported beforehand: %s", self._name, copy.importing, copy.refusal)
        self.learned.bad[copy.importing] = str(copy.refusal)
        self._sure = frozenset(modules[: modules.index(copy.importing)])
        return False

    def _refused(self) -> bool:
        """Whether workers set variables that their imports do not: modules may read those when they are imported."""
        foreign = sorted(name for name, _ in self._by_workers.items() - self._by_imports.items())
        if foreign and not self.learned.refused:
            self.learned.refused = f"workers set {', '.join(foreign[:5])} before they are ready"
            log.info("%s: what its workers import is left to them: %s", self._name, self.learned.refused)
        return bool(self.learned.refused)

    def _end(self, copy: Context) -> None:
        copy.close()
        self._failed = [context for context in self._failed if not context.gone.is_set()] + [copy]

    def _copied(self, task: asyncio.Task[None]) -> None:
        self.copying = None
        self._despair()
        if task.cancelled():
            self._changed()
            return
        if (error := task.exception()) is not None:
            log.warning("%s: what its workers import is left to them: %s", self._name, error)
            self._copies = MOST_COPIES
        self._keep()
        self._learn()  # what has come meanwhile, or all but the module at fault
        self._changed()

    def _despair(self) -> None:
        if self._hope is not None:
            self._hope.set()
            self._hope = None

    def _keep(self) -> None:
        """Write down what is known, soon."""
        kept = self._remembered.snapshot(self.learned)
        self.keeping = self._loop.create_task(offload(lambda: self._remembered.keep(kept)))
