"""How much of an answer its client has yet to take: what makes a remote engine stop reading from its server.

The engine runs in the gateway's process. Who sends an answer on opens a `Backlog` under the request's id and keeps it
as long as it sends; the engine finds it there. A request that has none is bounded by the number of its events alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from weakref import WeakValueDictionary

MOST_BYTES = 8 * 2**20
"""An engine stops reading while more than this is undelivered."""

LEAST_BYTES = 16 * 2**10
"""What the smallest part counts as, so that parts are bounded as well: at most 512, below any bound on events."""

_open: WeakValueDictionary[str, Backlog] = WeakValueDictionary()


class Backlog:
    """What was given out of one answer and is not delivered yet."""

    def __init__(self, request_id: str) -> None:
        self._waiting = 0
        self._room = asyncio.Event()
        self._room.set()
        _open[request_id] = self

    @staticmethod
    def of(request_id: str) -> Backlog | None:
        """That of a request, `None` where nobody keeps one."""
        return _open.get(request_id)

    def restart(self) -> None:
        """The request runs from its start, so nothing is given out."""
        self._waiting = 0
        self._room.set()

    def given(self, part: bytes) -> None:
        """The engine has given `part` out."""
        self._waiting += max(LEAST_BYTES, len(part))
        if self._waiting > MOST_BYTES:
            self._room.clear()

    def delivered(self, parts: Iterable[bytes]) -> None:
        """The client has taken `parts`."""
        self._waiting -= sum(max(LEAST_BYTES, len(part)) for part in parts)
        if self._waiting <= MOST_BYTES:
            self._room.set()

    async def room(self) -> None:
        """Returns once no more than `MOST_BYTES` are undelivered."""
        await self._room.wait()

    @property
    def full(self) -> bool:
        """Whether reading is to wait."""
        return not self._room.is_set()
