"""One timer for each entry of a table, on the running loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from foreserve.runtime.memory_entry import Entry


class Timers:
    """The table knows which of them is of no use any more; ending those only saves memory."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._set: dict[Entry, asyncio.TimerHandle] = {}

    def arm(self, entry: Entry, at: float, do: Callable[[], None]) -> None:
        """Call `do` at `at`, and no longer what was set before."""
        self._disarm(entry)
        self._set[entry] = self._loop.call_at(at, self._fired, entry, do)

    def close(self) -> None:
        """End all of them."""
        for timer in self._set.values():
            timer.cancel()
        self._set.clear()

    def _fired(self, entry: Entry, do: Callable[[], None]) -> None:
        self._disarm(entry)
        do()

    def _disarm(self, entry: Entry) -> None:
        if (timer := self._set.pop(entry, None)) is not None:
            timer.cancel()
