"""Recordings of what is served, as traces: who records hears of every request that comes while they do.

Nothing is spent while nobody records. A recording holds a bounded number of rows and bytes; a reader that is too slow
loses some and is told how many.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from typing import Any, Final

import msgspec

from foreserve import clock
from foreserve.core import Outcome, Request
from foreserve.dispatch.stream import Stream
from foreserve.errors import Unavailable
from foreserve.gateway.recorded import Answer, Came, Hashes, Ids, came, row
from foreserve.running import Running
from foreserve.traces.row import Header, Lost

log = logging.getLogger(__name__)

MOST_RECORDINGS: Final = 4
MOST_OF_TENANT: Final = 2
"""Recordings of one tenant at once. One place of all is kept for who may record every tenant."""

MOST_ROWS: Final = 20_000
"""Rows that wait for a reader."""

MOST_BYTES: Final = 64 * 2**20
"""Of the rows that wait for a reader, as they are written; and, about, of what is held of requests on their way."""

MOST_OPEN: Final = 100_000
"""Requests that are on their way at once, of those that are recorded."""

DRAIN_S: Final = 600.0
"""How long the requests that are open at the end of a recording's time are waited for."""

BATCH_ROWS: Final = 1000
BATCH_BYTES: Final = 2**20
"""Rows that are written together: so many, or as many as have so many bytes."""

_encode = msgspec.json.Encoder().encode


class Recordings:
    """All recordings of one server. Called on its event loop."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._open: list[Recording] = []
        self._answers: dict[str, Answer] = {}
        self._closed = False

    def begin(self, *, tenant: str | None, block_tokens: int, text: bool, seconds: float | None) -> Recording:
        """A recording from now on, of one tenant or (`None`) of all, for `seconds` or until it is ended.

        Raises Unavailable when there are too many already, or the server is stopping.
        """
        if (why := self._in_the_way(tenant)) is not None:
            raise Unavailable(f"{why}; no other can begin", retry_after=10.0)
        recording = Recording(tenant, block_tokens, text, seconds)
        if not self._open:
            self._running.observers.append(self._ended)
            for service in self._running.services.values():
                service.watcher = self
        self._open.append(recording)
        return recording

    def _in_the_way(self, tenant: str | None) -> str | None:
        if self._closed:
            return "the server is stopping"
        if len(self._open) >= MOST_RECORDINGS:
            return f"{MOST_RECORDINGS} recordings run already"
        of_tenants = [recording.tenant for recording in self._open if recording.tenant is not None]
        if tenant is not None and of_tenants.count(tenant) >= MOST_OF_TENANT:
            return f"{MOST_OF_TENANT} recordings of this tenant run already"
        if tenant is not None and len(of_tenants) >= MOST_RECORDINGS - 1:
            return f"{MOST_RECORDINGS - 1} recordings of single tenants run already"
        return None

    def end(self, recording: Recording) -> None:
        """Its reader has gone, or has read it to its end."""
        recording.close()
        if recording not in self._open:
            return
        self._open.remove(recording)
        if not self._open:
            self._running.observers.remove(self._ended)
            for service in self._running.services.values():
                service.watcher = None
            self._answers.clear()

    def close(self) -> None:
        """The server is stopping: every recording ends with what it has."""
        self._closed = True
        for recording in self._open:
            recording.close()

    # --- what they hear

    def came(self, kind: Any, request: Request, stream: Stream) -> None:
        """See `services.base.Watcher`."""
        ids = Ids(request.payload)
        taken = [recording.came(kind, request, ids) for recording in self._open]
        if any(part and recording.text for part, recording in zip(taken, self._open, strict=True)):
            answer = self._answers[request.id] = Answer()
            stream.tap = answer.take

    def went_on(self, request_id: str) -> None:
        """See `services.base.Watcher`."""
        self._answers.pop(request_id, None)
        for recording in self._open:
            recording.forget(request_id)

    def _ended(self, outcome: Outcome) -> None:
        answer = self._answers.pop(outcome.id, None)
        text = None if answer is None else answer.whole()
        for recording in self._open:
            recording.ended(outcome, text)


class Recording:
    """One reader's: `next` gives it line after line."""

    def __init__(self, tenant: str | None, block_tokens: int, text: bool, seconds: float | None) -> None:
        self.text = text
        self.tenant = tenant
        self._hashes = Hashes(secrets.token_bytes(32), block_tokens)
        self._start = clock.now()
        self._header: Header | None = Header(name="recording", epoch=clock.wall(), block_tokens=block_tokens)
        self._coming: dict[str, Came] = {}
        self._coming_bytes = 0
        self._rows: deque[bytes] = deque()
        self._rows_bytes = 0
        self._lost = 0
        self._news = asyncio.Event()
        self._takes = True
        self._over = False
        self._timers: list[asyncio.TimerHandle] = []
        if seconds is not None:
            loop = asyncio.get_running_loop()
            self._timers = [
                loop.call_later(seconds, self._last_call),
                loop.call_later(seconds + DRAIN_S, self.close),
            ]

    async def next(self) -> bytes | None:
        """The next lines, at least one; `None` at the end."""
        while True:
            lines: list[bytes] = []
            if self._header is not None:
                lines.append(_encode(self._header))
                self._header = None
            size = 0
            while self._rows and len(lines) < BATCH_ROWS and size < BATCH_BYTES:
                lines.append(self._rows.popleft())
                size += len(lines[-1])
            self._rows_bytes -= size
            if self._lost and not self._rows:
                lines.append(_encode(Lost(rows=self._lost)))
                self._lost = 0
            if lines:
                return b"\n".join(lines) + b"\n"
            if self._over or not (self._takes or self._coming):
                return None
            self._news.clear()
            await self._news.wait()

    def close(self) -> None:
        """Take in nothing more; what has ended can still be read."""
        self._takes, self._over = False, True
        self._coming.clear()
        self._coming_bytes = 0
        for timer in self._timers:
            timer.cancel()
        self._news.set()

    def _last_call(self) -> None:
        self._takes = False
        self._news.set()

    # --- what it hears

    def came(self, kind: Any, request: Request, ids: Ids) -> bool:
        """Whether it is recorded here."""
        if not self._takes or (self.tenant is not None and request.tenant != self.tenant):
            return False
        if len(self._coming) >= MOST_OPEN or self._coming_bytes >= MOST_BYTES:
            self._lose()
            return False
        try:
            known = came(kind, request, ids, self._hashes, self._start, text=self.text)
        except Exception:  # who records must never stand in the way of who is served
            log.exception("request %s cannot be recorded", request.id)
            self._lose()
            return False
        self._coming[request.id] = known
        self._coming_bytes += known.size
        return True

    def forget(self, request_id: str) -> None:
        """It has not come yet after all."""
        self._taken(request_id)

    def _taken(self, request_id: str) -> Came | None:
        known = self._coming.pop(request_id, None)
        if known is not None:
            self._coming_bytes -= known.size
        return known

    def ended(self, outcome: Outcome, answer: str | None) -> None:
        """One of those that came, or of others."""
        known = self._taken(outcome.id)
        if known is None:
            return
        if len(self._rows) >= MOST_ROWS or self._rows_bytes >= MOST_BYTES:
            self._lose()
            return
        try:
            line = _encode(row(known, outcome, self._hashes, answer if self.text else None))
        except Exception:  # as above
            log.exception("request %s cannot be recorded", outcome.id)
            self._lose()
            return
        self._rows.append(line)
        self._rows_bytes += len(line)
        self._news.set()

    def _lose(self) -> None:
        self._lost += 1
        self._news.set()
