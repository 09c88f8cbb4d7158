"""Models that are served upstream: their requests go through the queue, their answers pass byte for byte.

`forwarded` is for the handlers of paths that our own models have as well; `router` takes every other path under `/v1`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import cast

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from foreserve.core import Request, Work
from foreserve.engines.forwarding import Forward
from foreserve.engines.json_fields import edited, fields, value
from foreserve.errors import BadRequest, NotFound
from foreserve.gateway.bodies import TermsBody
from foreserve.gateway.calls import Call
from foreserve.gateway.decoding import Decoder
from foreserve.gateway.errors import no_such
from foreserve.gateway.passing import Passed, onward
from foreserve.gateway.relay import Relay
from foreserve.running import Running
from foreserve.services.base import Service
from foreserve.services.encoder import Encoder
from foreserve.services.llm import LLM
from foreserve.services.observing import Observer, Report
from foreserve.services.upstream import Upstream

log = logging.getLogger(__name__)

OBSERVED = "x-foreserve-observed"
"""The reply header that tells, when only observing, what would have become of the request."""

_REPORT_EVERY_S = 10.0
_STREAMS_WITH_USAGE = ("/v1/chat/completions", "/v1/completions")
_SEPARATOR = re.compile(r"[/\\]")
_BEFORE_JSON = b" \t\r\n\x00\xef\xbb\xbf\xff\xfe"
"""Blanks, byte order marks, and the zeros of UTF-16 and UTF-32, which servers that use Python's `json` read as well."""
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_MOST_ANSWERS = 4096
_terms = Decoder(TermsBody)


async def forwarded(call: Call) -> Response | None:
    """The reply to a request for a model that is served upstream, `None` when it is for none. Raises RequestError."""
    services = call.running.services
    if not any(isinstance(service.kind, Upstream) for service in services.values()):
        return None
    there = fields(call.raw)
    if there is None:
        return None
    model = value(there.get("model"))
    service = _named(call.running, model)
    if service is not None:
        return await forward(call, service, there)
    if isinstance(model, str) and model not in services:
        raise no_such("model", model, [name for name, _ in models_of(call.running)], "model")
    return None


def upstream_of(running: Running, model: str) -> Service | None:
    """The upstream service of a model, by our name for it or the servers' own; a service's name goes first."""
    services = running.services
    if model in services:
        return services[model] if isinstance(services[model].kind, Upstream) else None
    every = ((service, service.kind) for service in services.values())
    return next((service for service, kind in every if isinstance(kind, Upstream) and model in kind.models), None)


def models_of(running: Running) -> list[tuple[str, Service]]:
    """The names of all models that OpenAI's API serves, ours and those upstream, with their services."""
    found: list[tuple[str, Service]] = []
    for name, service in running.services.items():
        if isinstance(service.kind, Upstream) and len(service.kind.models) > 1:
            found += [(model, service) for model in service.kind.models]
        elif isinstance(service.kind, Encoder | LLM | Upstream):
            found.append((name, service))
    return found


async def forward(call: Call, service: Service, there: Mapping[str, msgspec.Raw]) -> Response:
    """Send a JSON request through the queue of `service`. `there` are its fields. Raises RequestError."""
    kind = cast(Upstream, service.kind)
    terms = _body_terms(there)
    request = call.request(service, terms) if kind.observer is not None else call.admitted(service, terms)
    order = _order(call, service, there)
    one = order.answers == 1
    about = await kind.about(order, there.get("messages"), there.get("prompt"), request.tenant) if one else None
    request = msgspec.structs.replace(request, payload=order, about=about)
    headers = {}
    if kind.observer is not None:
        headers[OBSERVED] = _observed(kind, kind.observer, request)
        # Nothing may come of it: what is too late is only counted.
        request = msgspec.structs.replace(request, deadline=None)
    stream = service.submit(request)
    if kind.observer is not None:
        stream.when_ended(kind.observer.ended)
    return Passed(stream, service.settings.stall_s, headers)


def _named(running: Running, model: object) -> Service | None:
    """Whom a body is for. One that names no model is for the only service there is; an observer minds no name."""
    if isinstance(model, str) and (service := upstream_of(running, model)) is not None:
        return service
    services = list(running.services.values())
    upstream = [service for service in services if isinstance(service.kind, Upstream)]
    if model is None and len(services) == len(upstream) == 1:
        return services[0]
    observing = next((s for s in upstream if cast(Upstream, s.kind).observer is not None), None)
    return None if isinstance(model, str) and model in running.services else observing


def _order(call: Call, service: Service, there: Mapping[str, msgspec.Raw]) -> Forward:
    """The request as the server gets it: without our own words, the model by its name there."""
    kind = cast(Upstream, service.kind)
    path = call.http.url.path
    answers = _answers(there)
    ours = value(there.get("model")) == service.name and kind.name_there(service.name) != service.name
    put = {"model": kind.name_there(service.name)} if ours else {}
    streams = value(there.get("stream")) is True and path.rstrip("/") in _STREAMS_WITH_USAGE and answers == 1
    options = value(there.get("stream_options"))
    asked = isinstance(options, dict) and options.get("include_usage") is True
    limits = (value(there.get(name)) for name in _LIMITS)
    return Forward(
        method=call.http.method,
        path=_target(call.http),
        body=edited(call.raw, put, drop=("foreserve",)),
        headers=onward(call.http, call.id),
        count_tokens=streams and not asked and kind.observer is None,
        max_tokens=next((n for n in limits if isinstance(n, int) and 0 < n < 2**53), None),
        answers=answers,
    )


def _answers(there: Mapping[str, msgspec.Raw]) -> int:
    """How many `n` and the prompts ask for; at least 2 unless it is one, which alone can be put back as it was."""
    n = value(there.get("n"))
    each = 1 if n in (None, 1) else min(max(2, n), _MOST_ANSWERS) if isinstance(n, int) else 2
    prompt = bytes(there.get("prompt", b""))[:64].translate(None, b" \t\r\n")
    if not prompt.startswith((b'["', b"[[")):
        return each
    prompts = value(there["prompt"])
    return each * max(2, min(len(prompts), _MOST_ANSWERS) if isinstance(prompts, list) else 2)


def _target(http: HttpRequest) -> str:
    raw: bytes = http.scope.get("raw_path") or http.url.path.encode()
    query: bytes = http.scope.get("query_string", b"")
    return (raw.partition(b"?")[0] + (b"?" + query if query else b"")).decode("latin-1")


def _body_terms(there: Mapping[str, msgspec.Raw]) -> TermsBody | None:
    raw = there.get("foreserve")
    return None if raw is None or bytes(raw) == b"null" else _terms.decode(bytes(raw))


# --- observing


def _observed(kind: Upstream, observer: Observer, request: Request) -> str:
    """Note a request's arrival and say what would have become of it."""
    work = Work(
        id=request.id,
        payload=request.payload,
        cost=kind.price(request).cost,
        arrival=request.arrival,
        deadline=request.deadline,
        tenant=request.tenant,
    )
    verdict = observer.arrived(work, request.arrival)
    if verdict.shed is not None:
        words = f"would have been refused: {verdict.shed}"
    elif verdict.wait_s is None:
        words = "would have waited; how long is not known yet"
    elif verdict.wait_s > 0:
        words = f"would have waited {verdict.wait_s:.2f} s"
    else:
        return "would have started at once"
    log.info("%s %s", request.id, words)
    return words


def reports(running: Running) -> dict[str, Report]:
    """What the observed services would have done so far, by name."""
    kinds = {name: service.kind for name, service in running.services.items()}
    return {
        name: kind.observer.report()
        for name, kind in kinds.items()
        if isinstance(kind, Upstream) and kind.observer is not None
    }


async def _log_reports(app: FastAPI) -> None:
    before: dict[str, Report] = {}
    while True:
        await asyncio.sleep(_REPORT_EVERY_S)
        for name, report in reports(app.state.running).items():
            if before.get(name) != report:
                before[name] = report
                log.info(
                    "%s: of %d requests %d would have started at once, %d waited (mean %.2f s, most %.2f s), "
                    "%d been refused",
                    name, report.requests, report.at_once, report.waited, report.wait_mean_s, report.wait_max_s,
                    report.shed,
                )  # fmt: skip


# --- every other path


def install(app: FastAPI) -> None:
    """Serve every other path under `/v1` too, if anything is served upstream. The last of the routers: it takes all."""
    running: Running = app.state.running
    if any(isinstance(service.kind, Upstream) for service in running.services.values()):
        app.state.relay = Relay()
        app.include_router(router)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(_log_reports(app))
    try:
        yield
    finally:
        task.cancel()
        relay: Relay = app.state.relay
        await relay.close()


router = APIRouter(prefix="/v1", tags=["Upstream"], lifespan=_lifespan)


@router.get("/foreserve/observe")
async def observe(http: HttpRequest) -> Response:
    """What `--observe` would have done so far, by service."""
    found = reports(cast(Running, http.app.state.running))
    return Response(msgspec.json.encode({"services": found}), media_type="application/json")


@router.api_route(
    "/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"], include_in_schema=False
)
async def anything(http: HttpRequest, path: str) -> Response:
    """A JSON object that names a model goes to it through its queue; all else goes to a server as it is.

    The body itself is looked at, not what its media type says: a server may read any as JSON.
    """
    running = cast(Running, http.app.state.running)
    if any(segment in (".", "..") for segment in _SEPARATOR.split(http.scope["path"])):
        raise BadRequest("the path has segments `.` or `..`; send it without them")
    relay: Relay = http.app.state.relay
    if http.method in ("GET", "HEAD", "OPTIONS"):
        return await relay.send(http, running, _target(http), None)
    parts = http.stream()
    begun = await _begun(parts)
    if http.method != "POST" or not begun.lstrip(_BEFORE_JSON).startswith(b"{"):
        return await relay.send(http, running, _target(http), _chained(begun, parts))
    call = Call(http, begun + b"".join([part async for part in parts]))
    if (reply := await forwarded(call)) is not None:
        return reply
    model = value((fields(call.raw) or {}).get("model"))
    if isinstance(model, str) and model in running.services:
        raise NotFound(f"the model {model!r} has no path {http.url.path!r}; /docs lists those there are")
    return await relay.send(http, running, _target(http), call.raw)


async def _begun(parts: AsyncIterator[bytes]) -> bytes:
    """A body's beginning, up to where it shows whether it is a JSON object."""
    begun = bytearray()
    async for part in parts:
        begun += part
        if part.lstrip(_BEFORE_JSON):
            break
    return bytes(begun)


async def _chained(begun: bytes, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield begun
    async for part in parts:
        yield part
