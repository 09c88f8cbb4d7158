"""What a host says: all chunks of one turn of the loop as one message, in order with everything else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from foreserve.core import Chunk, Finish
from foreserve.messages import Chunks, FromWorker

log = logging.getLogger(__name__)


class MessageTooLong(Exception):
    """What `send` raises for a message of `size` bytes where at most `limit` are carried."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the message has {size} bytes; at most {limit} are carried")


class Outbox:
    """`send` must not block; when it raises (MessageTooLong; TypeError for what cannot be encoded), the turn's chunks
    go one by one, and a request whose chunk cannot be sent ends there with an error: `cut_off(chunk)` tells of it.
    """

    def __init__(self, send: Callable[[FromWorker], None], cut_off: Callable[[Chunk], None]) -> None:
        self._send = send
        self._cut_off = cut_off
        self._chunks: list[Chunk] = []
        self._loop = asyncio.get_running_loop()

    def put(self, chunk: Chunk) -> None:
        """Send it with the others of this turn."""
        if not self._chunks:
            self._loop.call_soon(self.flush)
        self._chunks.append(chunk)

    def tell(self, message: FromWorker) -> None:
        """Send `message` now, after the chunks that were put before it."""
        self.flush()
        self._send(message)

    def flush(self) -> None:
        """Send the chunks now."""
        if self._chunks:
            chunks, self._chunks = tuple(self._chunks), []
            try:
                self._send(Chunks(chunks))
            except Exception:
                self._one_by_one(chunks)

    def silence(self) -> None:
        """Send nothing more."""
        self._chunks.clear()
        self._send = lambda _: None

    def _one_by_one(self, chunks: tuple[Chunk, ...]) -> None:
        cut: set[tuple[str, int]] = set()
        for chunk in chunks:
            if (chunk.id, chunk.attempt) in cut:
                continue
            try:
                self._send(Chunks((chunk,)))
            except Exception as error:
                log.exception("a part of the answer to %s cannot be sent", chunk.id)
                cut.add((chunk.id, chunk.attempt))
                words = f"a part of the answer cannot be sent: {type(error).__name__}: {error}"
                finish = Finish(reason="error", error=words)
                self._send(Chunks((Chunk(id=chunk.id, index=chunk.index, attempt=chunk.attempt, finish=finish),)))
                self._cut_off(chunk)
