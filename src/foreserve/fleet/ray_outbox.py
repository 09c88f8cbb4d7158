"""What a replica's actor has to say until its gateway asks for it: in order, in batches, bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

BATCH_BYTES: Final = 4 * 2**20
"""A batch ends with the message that reaches this; one message alone may be longer."""

HELD_BYTES: Final = 64 * 2**20
"""What may wait before no more is wanted; half of it before more is wanted again."""

Batch = tuple[list[bytes], str | None]
"""Messages in order, and, with the last of them, why the replica has ended."""


class Outbox:
    """`full(True)` is called when more waits than is good, `full(False)` when there is room again."""

    def __init__(self, full: Callable[[bool], None], held_bytes: int = HELD_BYTES) -> None:
        self._full = full
        self._most = held_bytes
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._is_full = False
        self._ended: str | None = None
        self._news = asyncio.Event()

    def put(self, message: bytes) -> None:
        """Takes it always: who is told that it is full has a message on its way perhaps."""
        self._waiting.append(message)
        self._bytes += len(message)
        self._news.set()
        if self._bytes > self._most and not self._is_full:
            self._is_full = True
            self._full(True)

    def end(self, reason: str) -> None:
        """Nothing comes after this."""
        self._ended = reason
        self._news.set()

    async def take(self) -> Batch:
        """All that has gathered, up to a batch; waits for the first of it. One caller at a time."""
        while not self._waiting and self._ended is None:
            self._news.clear()
            await self._news.wait()
        batch: list[bytes] = []
        size = 0
        while self._waiting and size < BATCH_BYTES:
            message = self._waiting.popleft()
            batch.append(message)
            size += len(message)
        self._bytes -= size
        if self._is_full and self._bytes <= self._most // 2:
            self._is_full = False
            self._full(False)
        return batch, None if self._waiting else self._ended
