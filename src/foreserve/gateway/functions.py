"""Functions over HTTP: `POST /v1/functions/NAME` with the keyword arguments as a JSON object, and paths of their own.

The reply is `{"result": …}`; of a generator it is the list of its items, or, where the client asks for it with
`Accept: text/event-stream` or `?stream=true`, an event for each item as it is made.

At a path of its own (`route`) a function takes JSON, forms with files, or raw bytes where that is all it takes, and
what it returns is the reply: bytes as they are, everything else as JSON. A generator streams unless the client asks
otherwise.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from foreserve.gateway.calls import Call
from foreserve.gateway.function_bodies import arguments, call_of
from foreserve.gateway.function_replies import answer, json_reply, plain_reply, wants_stream
from foreserve.gateway.function_schemas import described
from foreserve.gateway.schemas import describe
from foreserve.running import Running
from foreserve.services.function import Function

router = APIRouter(prefix="/v1/functions", tags=["Functions"])


@router.post("/{name}", **describe("Call a function", body_schema={"type": "object"}, streams=True))
async def call_function(http: HttpRequest, name: str) -> Response:
    """Call a function of this server with keyword arguments."""
    call = await Call.read(http)
    service = call.service(name, Function, "function", None)
    payload = cast(Function, service.kind).call(arguments(call.raw))
    streaming = wants_stream(http, usual=False)
    request = msgspec.structs.replace(call.admitted(service, None), payload=payload)
    return await answer(
        http, service, request, streaming=streaming, reply=lambda result: json_reply({"result": result})
    )


def install(app: FastAPI) -> None:
    """Serve each function that names one at its `route` too."""
    running: Running = app.state.running
    for name, service in running.services.items():
        if isinstance(service.kind, Function) and service.kind.settings.route is not None:
            app.add_api_route(
                service.kind.settings.route,
                _at_route(name),
                methods=["POST"],
                tags=["Functions"],
                name=name,
                **described(name, service.kind, app.state.components),
            )


def _at_route(name: str) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def call_at_route(http: HttpRequest) -> Response:
        call = await Call.read(http)
        service = call.service(name, Function, "function", None)
        kind = cast(Function, service.kind)
        request = call.admitted(service, None)
        if kind.takes is None:  # of code that is named: the first worker tells
            await call.known(service, request)
        payload = kind.checked(await call_of(http, call.raw, kind))
        streaming = wants_stream(http, usual=kind.streams)
        request = msgspec.structs.replace(request, payload=payload)
        return await answer(http, service, request, streaming=streaming, reply=plain_reply)

    return call_at_route
