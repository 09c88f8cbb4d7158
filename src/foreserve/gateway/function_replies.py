"""What a function gave, as a reply: the whole of it, or an event for each item as it is made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import msgspec
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from foreserve.core import Request
from foreserve.dispatch.stream import Stream
from foreserve.errors import BadRequest, EngineFailed
from foreserve.gateway.sse import EventStream, collected, event, raise_error
from foreserve.services.base import Service
from foreserve.services.function import Function

_encode = msgspec.json.Encoder().encode


def wants_stream(http: HttpRequest, *, usual: bool) -> bool:
    """Whether the client asks for events: by `?stream=`, by `Accept`, else what is `usual`. Raises BadRequest."""
    asked = http.query_params.get("stream")
    if asked not in (None, "true", "false"):
        raise BadRequest(f"`stream` is {asked[:64]!r}; valid: true, false", param="stream")
    accept = http.headers.get("accept", "*/*")
    if asked is not None:
        return asked == "true"
    return "text/event-stream" in accept or (usual and "*/*" in accept)


async def answer(
    http: HttpRequest, service: Service, request: Request, *, streaming: bool, reply: Callable[[Any], Response]
) -> Response:
    """Take the request in and answer it. `reply` makes the whole reply of a result; a generator's is the list of items.

    Raises what the request ended with.
    """
    stream = service.submit(request)
    if streaming:
        return EventStream(_events(stream), [stream], stall_s=service.settings.stall_s, last=event(b"[DONE]"))
    items = await collected(stream, http.receive)
    return reply(items if cast(Function, service.kind).streams else items[0] if items else None)


def json_reply(value: Any) -> Response:
    """`value` as JSON. Raises EngineFailed where it cannot be written."""
    return Response(_write(value), media_type="application/json")


def plain_reply(value: Any) -> Response:
    """Bytes as they are, everything else as JSON."""
    if isinstance(value, (bytes, bytearray)):
        return Response(bytes(value), media_type="application/octet-stream")
    return json_reply(value)


async def _events(stream: Stream) -> AsyncIterator[bytes]:
    async for items in stream:
        yield b"".join(event(_write(item)) for item in items)
    raise_error(stream)


def _write(value: Any) -> bytes:
    try:
        return _encode(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise EngineFailed(f"the function's result cannot be written as JSON: {error}") from None
