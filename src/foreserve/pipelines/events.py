"""What a client is told while a pipeline runs: typed events, each with the name of an output and a place in it.

A `path` has the number of the child on each level, outermost first: the second query of the third claim is `(2, 1)`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import msgspec

from foreserve.clock import now
from foreserve.pipelines.channel import Channel
from foreserve.pipelines.log import Log, Reader
from foreserve.pipelines.text import Text

BEHIND: Final = 256
"""How many events a client may leave unread before what makes them pauses, where it can."""

Path = tuple[int, ...]


class Item(msgspec.Struct, frozen=True, tag_field="event", tag="item"):
    """One value of an output."""

    name: str
    path: Path
    value: Any


class Delta(msgspec.Struct, frozen=True, tag_field="event", tag="text"):
    """More of a text."""

    name: str
    path: Path
    text: str


class End(msgspec.Struct, frozen=True, tag_field="event", tag="end"):
    """A stream or a text is complete; `count` is how many items a stream has."""

    name: str
    path: Path
    count: int | None = None


class Retracted(msgspec.Struct, frozen=True, tag_field="event", tag="retracted"):
    """All that was told of this place is void, and everything below it; it is made again."""

    name: str
    path: Path


Event = Item | Delta | End | Retracted


class Events:
    """The events of one request on their way to its client. Nothing is kept while nobody `listens`."""

    def __init__(self) -> None:
        self.listens = False
        self.first: float | None = None
        """When the first came, in loop seconds."""
        self._events: deque[Event] = deque()
        self._behind: dict[_Watch, None] = {}
        self._news: asyncio.Future[None] | None = None
        self._over = False

    @property
    def full(self) -> bool:
        """Whether the client is far enough behind."""
        return len(self._events) >= BEHIND

    def put(self, event: Event) -> None:
        """One more."""
        if self.first is None:
            self.first = now()
        self._events.append(event)
        self._wake()

    def close(self) -> None:
        """There are no more."""
        self._over = True
        self._wake()

    def hold(self, watch: _Watch) -> None:
        """Its writer is to wait until the client has caught up."""
        self._behind[watch] = None

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def next(self) -> list[Event] | None:
        """All that the client has not read, at least one; `None` once there are no more.

        What waited for the client goes on.
        """
        while not self._events:
            if self._over:
                return None
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        events = list(self._events)
        self._events.clear()
        behind, self._behind = self._behind, {}
        for watch in behind:
            watch.catch_up()
        return events

    def watch(self, name: str, path: Path, value: Any) -> None:
        """Tell of a value, and of all that comes where it comes bit by bit."""
        if isinstance(value, Text) and value.complete:
            self.put(Item(name, path, value.whole()))
        elif isinstance(value, Text):
            _TextWatch(self, name, path, value).start()
        elif isinstance(value, Channel):
            _StreamWatch(self, name, path, value).start()
        else:
            self.put(Item(name, path, value))


class _Watch(Reader):
    """Reads a log for the client. Its cursor follows what the client has read."""

    __slots__ = ("events", "log", "name", "over", "path", "seen")

    def __init__(self, events: Events, name: str, path: Path, log: Log) -> None:
        super().__init__()
        self.events = events
        self.log = log
        self.name = name
        self.path = path
        self.seen = 0
        self.over = False

    def start(self) -> None:
        self.started = True
        self.log.attach(self)
        self.news()

    def retracted(self) -> None:
        """See `Reader`."""
        self.seen = 0
        self.over = False
        self.events.put(Retracted(self.name, self.path))

    def follow(self) -> None:
        """Let the writer go on, or wait where the client is far behind."""
        if self.events.full:
            self.events.hold(self)
        else:
            self.cursor = self.seen

    def catch_up(self) -> None:
        """The client has read everything."""
        self.cursor = self.seen
        self.log.advanced()

    def ended(self, count: int | None) -> None:
        """Nothing more comes."""
        if not self.over:
            self.over = True
            self.events.put(End(self.name, self.path, count))


class _TextWatch(_Watch):
    __slots__ = ()

    def news(self) -> None:
        """See `Reader`."""
        text = "".join(self.log.items[self.seen :])
        self.seen = len(self.log.items)
        if text:
            self.events.put(Delta(self.name, self.path, text))
        self.follow()
        if self.log.complete:
            self.ended(None)


class _StreamWatch(_Watch):
    __slots__ = ()

    def news(self) -> None:
        """See `Reader`."""
        log: Channel = self.log  # type: ignore[assignment]
        while self.seen < len(log.items):
            at = self.seen
            self.seen += 1
            self.events.watch(self.name, (*self.path, *numbers(log.indices[at])), log.items[at])
        self.follow()
        if log.ended:
            self.ended(log.count)


def numbers(index: Any) -> Path:
    """An index as the numbers it is made of: a flattened stream's has several."""
    return tuple(n for part in index for n in numbers(part)) if isinstance(index, tuple) else (index,)


def path_of(ancestry: tuple[tuple[str, Any], ...]) -> Path:
    """An ancestry without its scopes' names."""
    return tuple(n for _, index in ancestry for n in numbers(index))
