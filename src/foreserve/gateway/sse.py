"""Server-sent events: a reply that is written while it is made, and what it is made from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foreserve.dispatch.stream import Stream
from foreserve.errors import ClientGone, EngineFailed, RequestError
from foreserve.gateway.calls import GONE
from foreserve.gateway.disconnect import Closable, closing
from foreserve.gateway.errors import error_body


def event(data: bytes) -> bytes:
    """One event. `data` has no line breaks, as JSON has none."""
    return b"data: " + data + b"\n\n"


class EventStream(Response):
    """Sends `parts`, whole events each, as they come; what `streams` feed them is closed when the client goes.

    A RequestError before the first part is raised, so that it becomes an HTTP status; after it, it is the last event,
    without what `last` would say. A client that takes nothing for `stall_s` is cut off.
    """

    media_type = "text/event-stream"

    def __init__(
        self, parts: AsyncIterator[bytes], streams: Sequence[Closable], *, stall_s: float, last: bytes
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._parts = parts
        self._streams = streams
        self._stall_s = stall_s
        self._last = last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._send_all(receive, send)
        except ClientGone:
            # The status has been sent and nobody reads on: left to the log, which says 499.
            scope[GONE] = True

    async def _send_all(self, receive: Receive, send: Send) -> None:
        async with closing(self._streams, receive):
            part = await anext(self._parts, b"")
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._write(send, part)
            try:
                async for part in self._parts:
                    await self._write(send, part)
                part = self._last
            except ClientGone:
                raise
            except RequestError as error:
                part = event(error_body(error))
            await self._write(send, part, more=False)

    async def _write(self, send: Send, part: bytes, more: bool = True) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                await send({"type": "http.response.body", "body": part, "more_body": more})
        except TimeoutError:
            raise ClientGone(f"the client took nothing for {self._stall_s:g} s") from None


async def merged(streams: Sequence[Stream]) -> AsyncIterator[tuple[int, Sequence[Any]]]:
    """Turns of several streams as they come, with whose they are. Raises the error of the first that fails."""
    if len(streams) == 1:
        async for events in streams[0]:
            yield 0, events
        raise_error(streams[0])
        return
    turns = {asyncio.ensure_future(stream.next()): index for index, stream in enumerate(streams)}
    try:
        while turns:
            done, _ = await asyncio.wait(turns, return_when=asyncio.FIRST_COMPLETED)
            for turn in sorted(done, key=turns.__getitem__):
                index = turns.pop(turn)
                if (news := turn.result()) is None:
                    raise_error(streams[index])
                    continue
                turns[asyncio.ensure_future(streams[index].next())] = index
                yield index, news
    finally:
        for turn in turns:
            turn.cancel()


async def collected(stream: Stream, receive: Receive) -> list[Any]:
    """All events of an answer that does not stream, once it has ended. Raises what it ended with."""
    found: list[Any] = []
    async with closing([stream], receive):
        async for events in stream:
            found.extend(events)
    raise_error(stream)
    return found


def raise_error(stream: Stream) -> None:
    """Raise what a stream that is at its end has to say, if it was not done."""
    if stream.outcome is None:
        raise EngineFailed("the answer ended without an outcome")
    error = stream.outcome.error()
    if error is not None:
        raise error
