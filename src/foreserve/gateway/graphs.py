"""Graphs over HTTP: `POST /v1/graphs/NAME/updates` and `/query`, `GET /v1/graphs/NAME/status`.

An update is acknowledged when it is visible and, unless the service is told otherwise, durable; one that does not fit
is refused whole. Changes come as JSON, as lines of it (`application/x-ndjson`), or as an Arrow stream of one kind
(`application/vnd.apache.arrow.stream`, with `?op=insert_edge&type=user:buys:item`).
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from foreserve.errors import BadRequest
from foreserve.gateway.calls import Call
from foreserve.gateway.graph_bodies import ARROW, NDJSON, columns, lines, of_arrow, query_body, update_body
from foreserve.gateway.schemas import describe
from foreserve.gateway.sse import collected
from foreserve.graphs.asked import Answered, Ask, Asked, Made, Query, Standing, Update
from foreserve.services.base import Service
from foreserve.services.graph import Graph
from foreserve.tensors import array, tensor_of

router = APIRouter(prefix="/v1/graphs", tags=["Graphs"])

KEY = "idempotency-key"

_ASKED = (400, 429, 500, 503, 504)
"""What may become of a request that has no body but goes to a worker all the same."""

T = TypeVar("T")


@router.get("", **describe("The graphs there are"))
async def graphs(http: HttpRequest) -> Response:
    """By name, what each is made of and whether it takes requests."""
    found = [
        {"name": name, "ready": service.ready, **(service.info.facts if service.info is not None else {})}
        for name, service in Call(http, b"").running.services.items()
        if isinstance(service.kind, Graph)
    ]
    return _json({"graphs": found})


@router.post("/{name}/updates", **describe("Change a graph", body_schema={"type": "object"}))
async def updates(http: HttpRequest, name: str, op: str | None = None, type: str | None = None) -> Response:
    """Nodes and edges that come, change and go, made together."""
    call = await Call.read(http)
    service = _service(call, name)
    media = http.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    key, terms = http.headers.get(KEY), None
    if media == ARROW:
        changes = of_arrow(call.raw, op, type)
    elif media == NDJSON:
        changes = columns(lines(call.raw))
    else:
        body = update_body.decode(call.raw)
        if body.key is not None and key is not None and body.key != key:
            raise BadRequest(f"`key` and the header `{KEY}` differ", param="key")
        key, terms = body.key or key, body.foreserve
        changes = columns(body.changes)
    asked = Update(changes.encode(), len(changes), key)
    made = await _asked(call, service, call.admitted(service, terms), asked, Made)
    return _json({"id": call.id, "version": made.version, "changes": made.changes, "again": made.again})


@router.post("/{name}/query", **describe("Ask for the outputs of nodes", body_schema={"type": "object"}))
async def query(http: HttpRequest, name: str) -> Response:
    """A row for each node, all of one version, with how stale that is."""
    call = await Call.read(http)
    service = _service(call, name)
    body = query_body.decode(call.raw)
    try:
        ids = np.array(body.nodes, dtype=np.int64)
    except OverflowError:
        raise BadRequest("`nodes`: an id is out of bounds", param="nodes") from None
    request = call.admitted(service, body.foreserve)
    asked = Query(tensor_of(ids), body.type, body.max_staleness_ms)
    made = await _asked(call, service, request, asked, Answered)
    outputs = array(made.rows).tolist()
    return _json({"id": call.id, "version": made.version, "staleness_ms": made.staleness_ms, "outputs": outputs})


@router.get("/{name}/status", **describe("How a graph stands", not_found=True, statuses=_ASKED))
async def status(http: HttpRequest, name: str) -> Response:
    """Version, sizes, memory, and what the updates took."""
    return await _status(http, name, Ask())


@router.post("/{name}/refresh", **describe("Compute all rows anew", not_found=True, statuses=_ASKED))
async def refresh(http: HttpRequest, name: str) -> Response:
    """Of the features and the edges alone; `drift` is how far they were off, relative to the largest number."""
    return await _status(http, name, Ask(refresh=True))


async def _status(http: HttpRequest, name: str, ask: Ask) -> Response:
    call = Call(http, b"")
    service = _service(call, name)
    made = await _asked(call, service, call.admitted(service, None), ask, Standing)
    return _json(msgspec.to_builtins(made))


async def _asked(call: Call, service: Service, request: Any, asked: Asked, into: type[T]) -> T:
    await call.known(service, request)
    request = msgspec.structs.replace(request, payload=asked)
    [event] = await collected(service.submit(request), call.http.receive)
    # What crossed a process is plain values; what did not is made of them in the same way.
    return msgspec.convert(msgspec.to_builtins(event, builtin_types=(bytes,)), into)


def _service(call: Call, name: str) -> Service:
    return call.service(name, Graph, "graph", None)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
