"""One pull of an engine's iterator: what it serves, a single request or the batch of a static engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from foreserve.core import Work


class Running:
    """One attempt of one request inside an engine, until its finish."""

    __slots__ = ("aborted", "attempt", "credits", "feeding", "id", "index", "pull", "timer")

    def __init__(self, work: Work, pull: Pull) -> None:
        self.id = work.id
        self.attempt = work.attempt
        self.credits = work.credits
        self.pull = pull
        self.index = 0
        self.aborted = False
        self.timer: asyncio.TimerHandle | None = None
        self.feeding: asyncio.Task[None] | None = None

    def ended(self) -> None:
        """Leave the pull. What the engine still yields for it is unknown from here on."""
        self.pull.live.pop(self.id, None)
        if self.timer is not None:
            self.timer.cancel()
        self.pull.wake()


class Pull:
    """`live` are those of its requests that have not ended; the engine knows of them once it has `begun`."""

    __slots__ = ("_sleeper", "begun", "live", "task")

    def __init__(self, works: Sequence[Work]) -> None:
        self.live = {work.id: Running(work, self) for work in works}
        self.begun = False
        self.task: asyncio.Task[None] | None = None
        self._sleeper: asyncio.Future[None] | None = None

    def out_of_credit(self) -> bool:
        """Whether a request has no credit for the next step. An aborted one needs none: it waits for its finish."""
        for running in self.live.values():
            if running.credits is not None and running.credits <= 0 and not running.aborted:
                return True
        return False

    async def asleep(self) -> None:
        """Until `wake`."""
        self._sleeper = asyncio.get_running_loop().create_future()
        try:
            await self._sleeper
        finally:
            self._sleeper = None

    def wake(self) -> None:
        """Something that the pull waits for may have changed."""
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)
