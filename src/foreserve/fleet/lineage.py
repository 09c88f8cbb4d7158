"""The contexts of one key, each a copy of the one before that has imported more: the newest forks.

The one before leaves with its last worker. What a copy imports beyond it is the learner's to find.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Final

from foreserve.fleet.context import Context, ContextKey
from foreserve.fleet.forked import ForkedProcess
from foreserve.fleet.learned import Remembered
from foreserve.fleet.learner import Learner
from foreserve.messages import ImportedLater

log = logging.getLogger(__name__)

IMPORT_LIMIT_S: Final = 300.0
"""How long the imports of a key may take before its process is given up."""


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
        self.learner: Learner | None = None
        """`None` where nothing is to be learned."""
        self._keep_s = keep_s
        self._tell = changed
        self._loop = asyncio.get_running_loop()
        self._waiting = 0
        self._letting_go: asyncio.TimerHandle | None = None
        self._before: list[Context] = []
        """The older ones, which still have workers."""
        self._newest = Context(name, key, self._changed)
        self._newest.spawn(IMPORT_LIMIT_S)
        if remembered is not None and key.learns:
            self.learner = Learner(name, key, remembered, worth_s, lambda: self._newest, self._adopt, self._changed)

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
        hopes = self.learner is not None and self.learner.hopes
        return not self.closing and self._newest.import_s is not None and not hopes

    @property
    def closing(self) -> bool:
        """Whether it takes no more workers."""
        return self._newest.closing

    @property
    def gone(self) -> bool:
        """Whether nothing of it is left."""
        done = self.learner is None or self.learner.gone
        return done and all(context.gone.is_set() for context in self.contexts)

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
            if self.learner is not None:
                await self.learner.hoped()
            return await self._newest.fork(name, wire, arguments, env, ended)
        finally:
            self._waiting -= 1
            self._look()

    def heard(self, later: ImportedLater, own: str) -> None:
        """What one of its workers has imported before it was ready. What is in the package `own` is left to it."""
        if self.learner is not None:
            self.learner.heard(later, own)

    def close(self) -> None:
        """Let all go. Workers that are left are ended."""
        if self.learner is not None:
            self.learner.close()
        for context in self.contexts:
            context.close()

    async def closed(self) -> None:
        """When all are gone, after `close`."""
        if self.learner is not None:
            await self.learner.closed()
        for context in self.contexts:
            await context.gone.wait()

    # --- its life

    def _adopt(self, copy: Context) -> None:
        log.info("%s takes over from %s: it has imported what workers import", copy.name, self._newest.name)
        self._before.append(self._newest)
        self._newest = copy

    def _changed(self) -> None:
        """A context of it has imported, lost a worker, or gone."""
        newest = self._newest
        if self.learner is not None and newest.imported is not None and not self.closing:
            self.learner.recall(newest.imported.mark)
        for context in [*self._before]:
            if context.gone.is_set():
                self._before.remove(context)
            elif context.offspring.idle and not context.closing:
                context.close()
        if newest.gone.is_set() and self._before and not self._before[-1].closing:
            self._newest = self._before.pop()  # one that knows less is better than none
            if self.learner is not None:
                self.learner.there.clear()
        self._look()
        self._tell()

    def _look(self) -> None:
        """Whether it is idle may have changed."""
        idle = not self._waiting and all(context.offspring.idle for context in self.contexts)
        if idle == (self.idle_since is not None):
            return
        if self._letting_go is not None:
            self._letting_go.cancel()
        self.idle_since = self._loop.time() if idle else None
        self._letting_go = self._loop.call_later(self._keep_s, self.close) if idle and not self.gone else None
