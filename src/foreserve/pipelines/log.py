"""What stages hand to each other: a log that one writes and any number read, each at its own pace.

Everything here happens on the event loop, in plain calls: an item goes from its maker to all who read it without a task
or a queue of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final

from foreserve.errors import ForeserveError, RequestError

WINDOW: Final = 64
"""How many items the reader that is furthest may be behind before a log's writer pauses."""

MOST_ITEMS: Final = 100_000
"""The most items of one log: what a request may hold of one stream."""


class TooMany(RequestError):
    """A stream has grown beyond what a request may hold."""

    status = 413
    code = "stream_too_long"


class Reader:
    """Reads a log. `cursor` is how many of its items it has taken; it has `started` once it takes any at all."""

    __slots__ = ("cursor", "started")

    def __init__(self) -> None:
        self.cursor = 0
        self.started = False

    def news(self) -> None:
        """There are more items, or the log has ended."""
        raise NotImplementedError

    def dropped(self, index: Any) -> None:
        """There will be no such item."""

    def retracted(self) -> None:
        """All items are taken back: the log begins anew, under another attempt."""
        raise NotImplementedError


class Log:
    """Items in the order in which they came, until `ended`. What was written stays, so whoever comes late reads all.

    Its writer asks `open` before it makes more. That is so while any reader has nearly nothing to read, or has not
    begun: were the slowest waited for, two streams that meet again could wait for each other for ever.
    """

    __slots__ = ("_gated", "_when_complete", "attempt", "complete", "ended", "items", "readers")

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.ended = False
        self.complete = False
        """Whether everything of it is here: for a stream of streams, of those too."""
        self.attempt = 0
        self.readers: list[Reader] = []
        self._when_complete: list[Callable[[], None]] = []
        self._gated: Callable[[], None] | None = None

    # --- the writer's side

    @property
    def open(self) -> bool:
        """Whether more is wanted now."""
        many = len(self.items)
        for reader in self.readers:
            if not reader.started or many - reader.cursor < WINDOW:
                return True
        return not self.readers

    def when_open(self, resume: Callable[[], None]) -> None:
        """Call `resume` once, when more is wanted. There is one writer, so one call."""
        self._gated = resume

    async def until_open(self) -> None:
        """Wait until more is wanted."""
        while not self.open:
            wanted = asyncio.get_running_loop().create_future()
            self.when_open(lambda wanted=wanted: None if wanted.done() else wanted.set_result(None))  # type: ignore[misc]
            await wanted

    def retract(self) -> None:
        """Take back everything: what follows is of the next attempt."""
        self.items.clear()
        self.ended = self.complete = False
        self.attempt += 1
        for reader in tuple(self.readers):
            reader.cursor = 0
            reader.retracted()

    def _check_room(self) -> None:
        if len(self.items) >= MOST_ITEMS:
            raise TooMany(f"a stream has more than {MOST_ITEMS} items; the rest of this request is not made")

    def _finish(self) -> None:
        """Nothing more comes and all that belongs to it is here."""
        self.ended = self.complete = True
        for reader in tuple(self.readers):
            reader.news()
        told, self._when_complete = self._when_complete, []
        for tell in told:
            tell()

    # --- the readers' side

    def attach(self, reader: Reader) -> None:
        """It hears of what comes from now on; what is here already it reads itself."""
        self.readers.append(reader)

    def detach(self, reader: Reader) -> None:
        """It reads no more. Unknown readers are ignored."""
        if reader in self.readers:
            self.readers.remove(reader)
            self.advanced()

    def advanced(self) -> None:
        """A reader has taken items: a writer that waited for it goes on."""
        if self._gated is not None and self.open:
            resume, self._gated = self._gated, None
            resume()

    def when_complete(self, tell: Callable[[], None]) -> None:
        """Call `tell` once everything is here, at once where it is."""
        if self.complete:
            tell()
        else:
            self._when_complete.append(tell)

    def forget(self, tell: Callable[[], None]) -> None:
        """Do not call it after all."""
        if tell in self._when_complete:
            self._when_complete.remove(tell)

    def whole(self) -> Any:
        """All of it that is here, as one value."""
        raise NotImplementedError


def whole(value: Any) -> Any:
    """A value with the streams in it as lists and live texts as text; they must be complete."""
    return value.whole() if isinstance(value, Log) else value


class Recall(Reader):
    """Reads nothing, and tells when what was written is taken back."""

    __slots__ = ("_log", "_tell")

    def __init__(self, log: Log, tell: Callable[[], None]) -> None:
        super().__init__()
        self._log = log
        self._tell = tell
        log.attach(self)

    def news(self) -> None:
        """See `Reader`."""

    def retracted(self) -> None:
        """See `Reader`."""
        self._tell()

    def close(self) -> None:
        """Tell no more."""
        self._log.detach(self)


def raised(error: BaseException) -> BaseException:
    """An error to be raised once more: without what it passed the last time, which would grow."""
    return error.with_traceback(None)


def unhandled(error: BaseException) -> bool:
    """Whether an error is none that was raised on purpose, and its traceback is worth a log line."""
    return not isinstance(error, (ForeserveError, asyncio.CancelledError))


def taken(reader: Reader, log: Log) -> Iterator[Any]:
    """The items that `reader` has not taken yet, each as it takes it."""
    items = log.items
    while reader.cursor < len(items):
        item = items[reader.cursor]
        reader.cursor += 1
        yield item
