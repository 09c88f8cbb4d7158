"""Another server's answer as our reply: status, headers and body as they came, but for what one connection needs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from fastapi import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foreserve.dispatch.stream import Stream
from foreserve.engines.forwarding import Answer, Body, Head
from foreserve.errors import ClientGone, EngineFailed, RequestError
from foreserve.gateway.calls import KEY
from foreserve.gateway.disconnect import closing
from foreserve.gateway.errors import as_latin1, error_body
from foreserve.gateway.sse import event, raise_error

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
    an event stream; any other answer is broken off, so that nobody takes it for whole.
    """

    def __init__(self, stream: Stream, stall_s: float, extra: Mapping[str, str]) -> None:
        super().__init__()
        self._stream = stream
        self._stall_s = stall_s
        self._extra = extra

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with closing([self._stream], receive):
            head, part = await self._begin()
            kind = head.content_type.partition(";")[0].strip().lower()
            if kind == "application/json":
                # The engine gives it in one piece, so its end is here as well, and the reply has a length.
                more = await self._stream.next()
                if more is None and self._whole():
                    return await self._send_whole(send, head, part)
                part += _join(more or ())
            await self._start(send, head, {})
            await self._write(send, part)
            last = b""
            try:
                async for answers in self._stream:
                    await self._write(send, _join(answers))
                raise_error(self._stream)
            except ClientGone:
                raise
            except RequestError as error:
                if kind != "text/event-stream":
                    raise
                last = event(error_body(error))
            return await self._write(send, last, more=False)

    async def _begin(self) -> tuple[Head, bytes]:
        answers = await self._stream.next()
        if answers is None:
            raise_error(self._stream)
            raise EngineFailed("the server's answer ended before it began")
        head = answers[0]
        assert isinstance(head, Head)
        return head, _join(answers[1:])

    def _whole(self) -> bool:
        return self._stream.outcome is not None and self._stream.outcome.error() is None

    async def _send_whole(self, send: Send, head: Head, body: bytes) -> None:
        await self._start(send, head, {"content-length": str(len(body))})
        await self._write(send, body, more=False)

    async def _start(self, send: Send, head: Head, more: Mapping[str, str]) -> None:
        headers = {**back(head.headers.items()), **self._extra, **more}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": head.status, "headers": raw})

    async def _write(self, send: Send, part: bytes, more: bool = True) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                await send({"type": "http.response.body", "body": part, "more_body": more})
        except TimeoutError:
            raise ClientGone(f"the client took nothing for {self._stall_s:g} s") from None


def _join(answers: Sequence[Answer]) -> bytes:
    return b"".join(answer.data for answer in answers if isinstance(answer, Body))
