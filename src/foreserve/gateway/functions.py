"""Plain functions over HTTP: `POST /v1/functions/NAME` with the keyword arguments as a JSON object.

The reply is `{"result": …}`; of a generator it is the list of its items, or, where the client asks for it with
`Accept: text/event-stream` or `?stream=true`, an event for each item as it is made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import msgspec
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from foreserve.dispatch.stream import Stream
from foreserve.errors import BadRequest, EngineFailed
from foreserve.gateway.calls import Call
from foreserve.gateway.decoding import Decoder
from foreserve.gateway.disconnect import closing
from foreserve.gateway.schemas import describe
from foreserve.gateway.sse import EventStream, event, raise_error
from foreserve.services.function import Function

router = APIRouter(prefix="/v1/functions", tags=["Functions"])

_arguments: Decoder[dict[str, Any]] = Decoder(dict[str, Any])
_encode = msgspec.json.Encoder().encode


@router.post("/{name}", **describe("Call a function", body_schema={"type": "object"}, streams=True))
async def call_function(http: HttpRequest, name: str) -> Response:
    """Call a function of this server with keyword arguments."""
    call = await Call.read(http)
    service = call.service(name, Function, "function", None)
    kind = cast(Function, service.kind)
    payload = kind.call(_decode(call.raw))
    streaming = _wants_stream(http)
    stream = service.submit(msgspec.structs.replace(call.admitted(service, None), payload=payload))
    if streaming:
        return EventStream(_events(stream), [stream], stall_s=service.settings.stall_s, last=event(b"[DONE]"))
    items: list[Any] = []
    async with closing([stream], http.receive):
        async for events in stream:
            items.extend(events)
    raise_error(stream)
    result = items if kind.streams else items[0] if items else None
    return Response(_write({"result": result}), media_type="application/json")


def _decode(raw: bytes) -> dict[str, Any]:
    args = _arguments.decode(raw)
    try:
        # Arguments travel to a worker as msgpack, which has no integers beyond 64 bits.
        msgspec.msgpack.encode(args)
    except OverflowError:
        raise BadRequest("an integer is too large; at most 64 bits are carried") from None
    return args


def _wants_stream(http: HttpRequest) -> bool:
    asked = http.query_params.get("stream")
    if asked not in (None, "true", "false"):
        raise BadRequest(f"`stream` is {asked[:64]!r}; valid: true, false", param="stream")
    return asked == "true" or (asked is None and "text/event-stream" in http.headers.get("accept", ""))


async def _events(stream: Stream) -> AsyncIterator[bytes]:
    async for items in stream:
        yield b"".join(event(_write(item)) for item in items)
    raise_error(stream)


def _write(value: Any) -> bytes:
    try:
        return _encode(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise EngineFailed(f"the function's result cannot be written as JSON: {error}") from None
