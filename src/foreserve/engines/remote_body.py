"""The body of a remote server's answer, part by part, and what it tells of tokens on the way."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import aiohttp

from foreserve.clock import now
from foreserve.engines.backlog import Backlog
from foreserve.engines.counting import Counting
from foreserve.engines.events import EventSplitter, EventTooLong, told_by_json
from foreserve.engines.remote_call import Call, Silent
from foreserve.engines.remote_pulse import Pulse

_GATHER_BYTES = 16 * 2**20


@dataclass(slots=True)
class Told:
    """What an answer has told of itself so far: `usage` by name, in tokens, and whether its limit cut it."""

    usage: dict[str, float] = field(default_factory=dict)
    cut: bool = False


class RemoteBody:
    """The body of one answer with a good status; `told` is filled in while it is read.

    Silence is bounded by `timeout_s`. With a `backlog` nothing is read while that is full. With `counting` the counts
    of tokens were asked for on our own account, and are kept from the client.
    """

    def __init__(
        self,
        request_id: str,
        response: aiohttp.ClientResponse,
        call: Call,
        pulse: Pulse,
        *,
        counting: bool,
        backlog: Backlog | None,
        timeout_s: float,
    ) -> None:
        self._request_id = request_id
        self._response = response
        self._call = call
        self._pulse = pulse
        self._counting = counting
        self._backlog = backlog
        self._timeout_s = timeout_s
        self.told = Told()

    def parts(self) -> AsyncGenerator[bytes, None]:
        """Whole events of an event stream; JSON in one piece (within reason); anything else as it comes.

        Raises Cancelled, Silent, EventTooLong, and aiohttp's errors of a connection.
        """
        headers = self._response.headers
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if headers.get("Content-Encoding", "identity") != "identity":
            kind = "encoded"
        return self._events() if kind == "text/event-stream" else self._plain(kind == "application/json")

    async def _read(self) -> bytes:
        if self._backlog is not None and self._backlog.full:
            await self._call.within(self._backlog.room, None)
        return await self._call.within(self._response.content.readany, self._timeout_s)

    async def _events(self) -> AsyncGenerator[bytes, None]:
        events, counts = EventSplitter(), Counting(self._counting)
        try:
            while data := await self._read():
                whole = events.feed(data)
                # A comment keeps a connection alive, and may come of a server that does nothing else.
                if any(not event.startswith(b":") for event in whole):
                    self._pulse.heard(self._request_id, now())
                if kept := counts.feed(whole):
                    yield kept
        except (aiohttp.ClientError, OSError, Silent, EventTooLong):
            if kept := counts.rest():
                yield kept
            raise
        finally:
            self.told.usage.update(counts.usage)
            self.told.cut |= counts.cut
            self._pulse.streamed(self._request_id, counts.usage.get("output_tokens", 0.0))
        if rest := counts.rest() + events.rest():
            yield rest

    async def _plain(self, whole: bool) -> AsyncGenerator[bytes, None]:
        held = bytearray()
        while data := await self._read():
            self._pulse.heard(self._request_id, now())
            if whole and len(held) + len(data) <= _GATHER_BYTES:
                held += data
            else:
                yield bytes(held) + data
                held.clear()
        if held:
            if (said := told_by_json(bytes(held))) is not None:
                self.told.usage.update(said.usage)
                self.told.cut |= said.cut
            yield bytes(held)
