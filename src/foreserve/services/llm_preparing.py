"""Long prompts are tokenised in threads: few at once, few waiting, so that a flood of them is refused, not stored."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

from foreserve.clock import offload
from foreserve.errors import Shed

T = TypeVar("T")

WAITING_PER_PLACE = 16
"""Long prompts take tens of milliseconds each, so who is last of these waits about a second."""


class Preparing:
    """At most `at_once` (by default two for each core) run, `WAITING_PER_PLACE` times as many wait."""

    def __init__(self, at_once: int | None = None) -> None:
        self._at_once = at_once or 2 * (os.cpu_count() or 1)
        self._most = self._at_once * (1 + WAITING_PER_PLACE)
        self._places = asyncio.Semaphore(self._at_once)
        self._inside = 0

    async def run(self, prepare: Callable[[], T]) -> T:
        """`prepare()`, off the loop, when it is its turn. Raises Shed when too many wait, and what it raises."""
        if self._inside >= self._most:
            waiting = self._inside - self._at_once
            raise Shed(f"{waiting} long prompts wait to be tokenised, and no more are taken", retry_after=1.0)
        self._inside += 1
        try:
            async with self._places:
                return await offload(prepare)
        finally:
            self._inside -= 1
