"""Another server's answer as our reply: status, headers and body as they came, but for what one connection needs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from fastapi import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foreserve.dispatch.stream import Stream
from foreserve.engines.backlog import Backlog
from foreserve.engines.forwarding import Answer, Body, Head
from foreserve.errors import ClientGone, EngineFailed, RequestError
from foreserve.gateway.calls import KEY
from foreserve.gateway.disconnect import closing
from foreserve.gateway.errors import as_latin1, error_body
from foreserve.gateway.sse import event, raise_error

SLICE_BYTES = 64 * 2**10
"""What is handed to the connection at once; a client must take one within the service's `stall_s`."""

_HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip
_OURS = frozenset({"host", "content-length", "accept-encoding", "expect", "x-slo-ms", "x-utility", "x-tenant"})
_THEIRS = frozenset({"content-length", "date", "server", "x-request-id"})
"""What our server writes itself. Theirs would come out twice."""


def onward(http: HttpRequest, request_id: str) -> dict[str, str]:
    """The headers that go on to the server. A key that was ours to check stays with us."""
    drop = _OURS | {"authorization"} if http.scope.get(KEY) is not None else _OURS
    sent = _end_to_end(http.headers.items(), drop)
    if http.method in ("POST", "PUT", "PATCH"):
        sent.setdefault("content-type", "application/json")
    return sent | {"x-request-id": request_id}


def back(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The headers of an answer that go back to the client, each value ready to be written as Latin-1."""
    return {name: as_latin1(value) for name, value in _end_to_end(headers, _THEIRS).items()}


def _end_to_end(headers: Iterable[tuple[str, str]], drop: frozenset[str]) -> dict[str, str]:
    """All but those for one connection, which its `Connection` header may name more of. Repeated ones are joined."""
    pairs = [(name.lower(), value) for name, value in headers]
    named = {word.strip().lower() for name, value in pairs if name == "connection" for word in value.split(",")}
    joined: dict[str, str] = {}
    for name, value in pairs:
        if name not in _HOP_BY_HOP and name not in drop and name not in named:
            joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


class Passed(Response):
    """What `stream` gives, sent as it comes, and `extra` headers. Who takes nothing for `stall_s` is cut off.

    A RequestError before the first byte is raised, so that it becomes an HTTP status. After it, it is the last event of
    an event stream; any other answer is broken off, so that nobody takes it for whole. How far the client has come is
    told to the engine through the request's `Backlog`.
    """

    def __init__(self, stream: Stream, stall_s: float, extra: Mapping[str, str]) -> None:
        super().__init__()
        self._stream = stream
        self._turns = Ahead(stream)
        self._backlog = Backlog(stream.id)
        self._stall_s = stall_s
        self._extra = extra

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with closing([self._stream], receive):
            try:
                await self._pass_on(send)
            finally:
                self._turns.close()

    async def _pass_on(self, send: Send) -> None:
        head, parts = await self._begin()
        kind = head.content_type.partition(";")[0].strip().lower()
        if kind == "application/json" and not self._backlog.full:
            # The engine gives it in one piece, so its end is here as well, and the reply has a length. It may be
            # waiting to read on when the piece is very large; then there is no length.
            more = await self._turns.next()
            if more is None and self._whole():
                await self._send_whole(send, head, parts)
                return
            parts += _bodies(more or ())
        await self._start(send, head, {})
        await self._write(send, parts)
        last = b""
        try:
            while (answers := await self._turns.next()) is not None:
                await self._write(send, _bodies(answers))
            raise_error(self._stream)
        except ClientGone:
            raise
        except RequestError as error:
            if kind != "text/event-stream":
                raise
            last = event(error_body(error))
        await self._send(send, last, more=False)

    async def _begin(self) -> tuple[Head, list[bytes]]:
        answers = await self._turns.next()
        if answers is None:
            raise_error(self._stream)
            raise EngineFailed("the server's answer ended before it began")
        head = answers[0]
        assert isinstance(head, Head)
        return head, _bodies(answers[1:])

    def _whole(self) -> bool:
        return self._stream.outcome is not None and self._stream.outcome.error() is None

    async def _send_whole(self, send: Send, head: Head, parts: Sequence[bytes]) -> None:
        await self._start(send, head, {"content-length": str(sum(map(len, parts)))})
        await self._write(send, parts, more=False)

    async def _start(self, send: Send, head: Head, more: Mapping[str, str]) -> None:
        headers = {**back(head.headers.items()), **self._extra, **more}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": head.status, "headers": raw})

    async def _write(self, send: Send, parts: Sequence[bytes], more: bool = True) -> None:
        """One turn, in slices: a slow client is not a stalled one while it takes a slice in time."""
        data = b"".join(parts)
        for at in range(0, len(data) - SLICE_BYTES, SLICE_BYTES):
            await self._send(send, data[at : at + SLICE_BYTES])
            self._turns.look()
        last = (len(data) - 1) // SLICE_BYTES * SLICE_BYTES if data else 0
        await self._send(send, data[last:] if last else data, more)
        self._backlog.delivered(parts)

    async def _send(self, send: Send, part: bytes, more: bool = True) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                await send({"type": "http.response.body", "body": part, "more_body": more})
        except TimeoutError:
            raise ClientGone(f"the client took nothing for {self._stall_s:g} s") from None


class Ahead:
    """The turns of a stream, read on while an earlier one is still being sent.

    The stream would take its reader for stalled while it sends megabytes to a slow client.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._read: list[Answer] = []
        self._reading: asyncio.Task[Sequence[Answer] | None] | None = None

    async def next(self) -> Sequence[Answer] | None:
        """The next turn, `None` at the end."""
        if self._read:
            read, self._read = self._read, []
            return read
        if self._reading is None:
            return await self._stream.next()
        reading, self._reading = self._reading, None
        return await reading

    def look(self) -> None:
        """Take in what has come, without waiting."""
        if self._reading is not None and self._reading.done():
            turn = self._reading.result()
            if turn is None:
                return
            self._read += turn
            self._reading = None
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._stream.next())

    def close(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()


def _bodies(answers: Sequence[Answer]) -> list[bytes]:
    return [answer.data for answer in answers if isinstance(answer, Body)]
