"""The Open Inference Protocol (v2) over HTTP, for every kind that `Infers`.

Errors have the protocol's shape, `{"error": words}`, with the status that they have everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

import msgspec
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from fastapi.routing import APIRoute

from foreserve import __version__
from foreserve.errors import BadRequest, BodyTimeout, ClientGone, NotFound, RequestError, TooLarge
from foreserve.gateway.calls import Call
from foreserve.gateway.errors import no_such, retry_headers
from foreserve.gateway.inference_bodies import HEADER_LENGTH, InferBody, decode, encode
from foreserve.gateway.schemas import describe
from foreserve.gateway.sse import collected
from foreserve.services.base import Service
from foreserve.services.inference import Infers, InfersOnTerms

EXTENSIONS = ["binary_tensor_data"]


_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {}}}
"""The shape of errors here; those of the server itself, such as a wrong key, have its own."""


def _describe(summary: str, **words: Any) -> dict[str, Any]:
    described = describe(summary, **words)
    for status, reply in described["responses"].items():
        if status != 200 and "content" in reply:
            reply["content"]["application/json"] = {"schema": _ERROR}
    return described


class _Route(APIRoute):
    """A path whose errors have the protocol's shape."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def told(http: HttpRequest) -> Response:
            try:
                return await handle(http)
            except (BodyTimeout, TooLarge, ClientGone):
                raise  # for the edge, which knows what to do with the rest of the body and with nobody
            except RequestError as error:
                body = {"error": error.message}
                return _json(body, error.status, retry_headers(error.status, error.retry_after))

        return told


router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], route_class=_Route)


@router.get("", **_describe("The server"))
async def server() -> Response:
    """What this server is and which extensions of the protocol it has."""
    return _json({"name": "foreserve", "version": __version__, "extensions": EXTENSIONS})


@router.get("/health/live", **_describe("Whether the server answers at all", open_to_all=True))
async def live() -> Response:
    """Answers as long as the event loop turns."""
    return _json({"live": True})


@router.get("/health/ready", **_describe("Whether all models can serve", open_to_all=True, statuses=(503,)))
async def ready(http: HttpRequest) -> Response:
    """200 once all services have started and while every model takes work."""
    running = Call(http, b"").running
    is_ready = running.started and all(s.ready for s in running.services.values() if isinstance(s.kind, Infers))
    return _json({"ready": is_ready}, 200 if is_ready else 503)


@router.get("/models/{name}", **_describe("A model's tensors", not_found=True))
async def model(http: HttpRequest, name: str) -> Response:
    """A model's name and its tensors, as far as they are known."""
    service, kind = _model(Call(http, b""), name)
    return _json(
        {
            "name": service.name,
            "versions": [],
            "platform": kind.platform,
            "inputs": kind.model_inputs(),
            "outputs": kind.model_outputs(),
        }
    )


@router.get("/models/{name}/ready", **_describe("Whether a model can serve", not_found=True, statuses=(503,)))
async def model_ready(http: HttpRequest, name: str) -> Response:
    """200 while it takes work."""
    service, _ = _model(Call(http, b""), name)
    return _json({"name": service.name, "ready": service.ready}, 200 if service.ready else 503)


@router.post("/models/{name}/infer", **_describe("Ask a model", body=InferBody))
async def infer(http: HttpRequest, name: str) -> Response:
    """Ask a model for the outputs of these inputs. Tensors are in JSON, or raw data behind it."""
    call = await Call.read(http)
    service, kind = _model(call, name)
    body, tensors = decode(call.raw, http.headers.get(HEADER_LENGTH))
    request = call.admitted(service, None)
    await call.known(service, request)
    if kind.streams:
        raise BadRequest(f"{service.name!r} gives its answer in parts, for which this protocol has no way")
    request = msgspec.structs.replace(request, payload=kind.infer(tensors))
    on_terms = kind if isinstance(kind, InfersOnTerms) else None
    if on_terms is not None:
        request = msgspec.structs.replace(request, about=on_terms.on_terms(request.payload, body.parameters))
    events = await collected(service.submit(request), http.receive)
    parameters = {} if on_terms is None else on_terms.told(events)
    data, header_length = encode(service.name, body, kind.inferred(events), parameters)
    if header_length is None:
        return Response(data, media_type="application/json")
    headers = {HEADER_LENGTH: str(header_length)}
    return Response(data, headers=headers, media_type="application/octet-stream")


def _model(call: Call, name: str) -> tuple[Service, Infers]:
    service = call.running.services.get(name)
    if service is None or not isinstance(service.kind, Infers):
        there_are = [n for n, s in call.running.services.items() if isinstance(s.kind, Infers)]
        found: NotFound = no_such("model", name, there_are, "name")
        raise found
    return service, cast(Infers, service.kind)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
