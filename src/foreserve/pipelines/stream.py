"""How a stage reads a log: an asynchronous iterator over what one edge brings to one invocation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from foreserve.pipelines.log import Log, Reader, Recall

T = TypeVar("T")


class Stream(Reader, Generic[T]):
    """Items as they come, in the order in which they come: `async for item in stream`, or `await stream.to_list()`.

    As an annotation, `Stream[T]`, it says that a stage reads many items, or makes them.
    """

    __slots__ = ("_convert", "_log", "_news", "on_retract")

    def __init__(self, log: Log, convert: Callable[[Any], Any] | None = None) -> None:
        """`convert` makes of each item what the reader is to get; what it returns is awaited where it can be."""
        super().__init__()
        self._log = log
        self._convert = convert
        self._news: asyncio.Future[None] | None = None
        self.on_retract: Callable[[], None] | None = None
        """Told when what was read is taken back. While nothing was read there is nobody to tell."""
        log.attach(self)

    def news(self) -> None:
        """See `Reader`."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def retracted(self) -> None:
        """See `Reader`."""
        if self.started and self.on_retract is not None:
            self.on_retract()

    def close(self) -> None:
        """Read no more."""
        self._log.detach(self)

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> T:
        log = self._log
        self.started = True
        while self.cursor >= len(log.items):
            if log.ended:
                raise StopAsyncIteration
            log.advanced()
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        item = log.items[self.cursor]
        self.cursor += 1
        if log._gated is not None:
            log.advanced()
        if self._convert is not None:
            item = self._convert(item)
            if hasattr(item, "__await__"):
                item = await item
        if self.on_retract is not None:
            self._recall(item)
        return item  # type: ignore[no-any-return]

    def _recall(self, item: Any) -> None:
        """Where items grow themselves, hear of what is taken back of them too."""
        if isinstance(item, Stream):
            item.on_retract = self.on_retract
        elif isinstance(item, Log) and self.on_retract is not None:
            Recall(item, self.on_retract)

    async def to_list(self) -> list[T]:
        """All items that are left, once they are here."""
        return [item async for item in self]
