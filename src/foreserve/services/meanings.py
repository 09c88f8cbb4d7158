"""Meanings of texts beside the loop: one thread embeds what waits together, and who waits too long does without."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from foreserve.foresight.length import Asked
from foreserve.foresight.length_features import Encoder

log = logging.getLogger(__name__)

T = TypeVar("T")

LIMIT_S: Final = 0.05
"""How long a request waits for its meaning; then it is foreseen without."""

MOST_WAITING: Final = 64
MOST_BATCH: Final = 16
"""Texts that wait, and that are embedded together."""

VIRTUAL_COST_S: Final = 0.005
"""What a batch takes on a virtual loop."""

_ENCODING: Final = threading.Lock()

Meaning = tuple[NDArray[np.float16], NDArray[np.float16]]
"""Of a request's instruction and of its text."""


def both(meaning: Meaning) -> NDArray[np.float16]:
    """As it stands in `Features.meaning`."""
    return np.concatenate(meaning)


class Given:
    """An encoder whose answers were found already, in the order of the requests."""

    def __init__(self, meanings: Sequence[Meaning]) -> None:
        self._meanings = meanings

    def instructions(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """As they were found."""
        return np.stack([instruction for instruction, _ in self._meanings])

    def inputs(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """As they were found."""
        return np.stack([text for _, text in self._meanings])


class Meanings:
    """Embeds with `encoder`, which the services of a process share."""

    def __init__(self, encoder: Encoder, limit_s: float = LIMIT_S) -> None:
        self._encoder = encoder
        self._limit_s = limit_s
        self._waiting: list[tuple[Asked, asyncio.Future[Meaning | None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self.missed = 0
        """Requests that had to do without."""

    async def of(self, batch: Sequence[Asked]) -> list[Meaning] | None:
        """One for each; `None` when that would take too long, too many wait, or embedding fails."""
        futures = self.beside(batch)
        if not futures:
            self.missed += len(batch)
            return None
        try:
            async with asyncio.timeout(self._limit_s):
                found = await asyncio.gather(*futures)
        except TimeoutError:
            found = [None]
        meanings = [meaning for meaning in found if meaning is not None]
        if len(meanings) < len(found):
            self.missed += len(batch)
            return None
        return meanings

    def beside(self, batch: Sequence[Asked]) -> list[asyncio.Future[Meaning | None]]:
        """The same without waiting: each is found in a while, or never. None at all when too many wait already."""
        if len(self._waiting) + len(batch) > MOST_WAITING:
            return []
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Meaning | None]] = [loop.create_future() for _ in batch]
        self._waiting += zip(batch, futures, strict=True)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._embed(), name="meanings")
        return futures

    async def _embed(self) -> None:
        """All that wait, some at a time, until none does."""
        while self._waiting:
            chosen, self._waiting = self._waiting[:MOST_BATCH], self._waiting[MOST_BATCH:]
            chosen = [(asked, future) for asked, future in chosen if not future.done()]
            if not chosen:
                continue
            found: Sequence[Meaning | None]
            try:
                found = await self._off_loop(lambda batch=[asked for asked, _ in chosen]: self.embed(batch))  # type: ignore[misc]
            except Exception:
                log.exception("texts could not be embedded; they are foreseen without their meaning")
                found = [None] * len(chosen)
            for (_, future), meaning in zip(chosen, found, strict=True):
                if not future.done():
                    future.set_result(meaning)

    def embed(self, batch: Sequence[Asked]) -> list[Meaning]:
        """Here and now; takes milliseconds."""
        with _ENCODING:
            instructions = self._encoder.instructions([asked.instruction for asked in batch])
            texts = self._encoder.inputs([asked.text for asked in batch])
        return list(zip(instructions, texts, strict=True))

    async def _off_loop(self, fn: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        if getattr(loop, "virtual", False):
            result = fn()
            await asyncio.sleep(VIRTUAL_COST_S)
            return result
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="foreserve-meanings")
        return await loop.run_in_executor(self._thread, fn)

    def close(self) -> None:
        """End the thread once it is done with what it does."""
        if self._task is not None:
            self._task.cancel()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
