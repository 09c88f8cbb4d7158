"""Pipelines over HTTP: `POST /v1/pipelines/NAME` with the inputs as a JSON object.

The reply is `{"id": …, "result": …}`, or, where the client asks for it with `Accept: text/event-stream` or
`?stream=true`, an event for each item, part of a text and end, as they come, with the name of the output and its place;
the last one is `{"event": "done", "usage": …}`. What a replica that was lost had given may be taken back:
`{"event": "retracted", …}`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import HTMLResponse, Response

from foreserve.errors import BadRequest, EngineFailed, NotFound
from foreserve.gateway.bodies import TermsBody
from foreserve.gateway.calls import Call
from foreserve.gateway.decoding import Decoder
from foreserve.gateway.disconnect import closing
from foreserve.gateway.function_replies import wants_stream
from foreserve.gateway.pipeline_timeline import as_facts, as_page, as_trace
from foreserve.gateway.schemas import describe
from foreserve.gateway.sse import EventStream, event
from foreserve.pipelines.run import Run
from foreserve.pipelines.shapes import value_of, words
from foreserve.services.pipeline import ServedPipeline, told

router = APIRouter(prefix="/v1/pipelines", tags=["Pipelines"])

TERMS = "foreserve"
"""The field of a body that is no input."""

DONE = event(b"[DONE]")

_body = Decoder(dict[str, Any])
_encode = msgspec.json.Encoder(enc_hook=lambda value: _unknown(value)).encode


@router.get("", **describe("The pipelines there are"))
async def pipelines(http: HttpRequest) -> Response:
    """What each takes and gives, the services it asks, and what it has learned of its stages."""
    found = [_described(each) for each in Call(http, b"").running.pipelines.values()]
    return Response(_encode({"pipelines": found}), media_type="application/json")


@router.get("/{name}", **describe("One pipeline", not_found=True))
async def pipeline(http: HttpRequest, name: str) -> Response:
    """What it takes and gives, the services it asks, and what it has learned of its stages."""
    return Response(_encode(_described(Call(http, b"").pipeline(name))), media_type="application/json")


@router.post("/{name}", **describe("Run a pipeline", body_schema={"type": "object"}, streams=True))
async def run_pipeline(http: HttpRequest, name: str) -> Response:
    """Run a pipeline of this server on inputs by name."""
    call = await Call.read(http)
    served = call.pipeline(name)
    body = _body.decode(call.raw)
    terms = _terms(body.pop(TERMS, None))
    inputs = checked_inputs(served, body)
    request = call.request(served, terms)
    streaming = wants_stream(http, usual=False)
    run = served.submit(request, inputs, listens=streaming)
    if streaming:
        return EventStream(_events(run), [run], stall_s=served.settings.stall_s, last=DONE)
    result = await result_of(call, run)
    return Response(_encode({"id": request.id, "result": result}), media_type="application/json")


@router.get(
    "/{name}/requests/{request_id}/timeline", **describe("When each stage worked for a request", not_found=True)
)
async def timeline(http: HttpRequest, name: str, request_id: str, form: str | None = None) -> Response:
    """Of one of the latest requests: JSON, to a browser a page; with `?form=trace` a Chrome trace for https://ui.perfetto.dev."""
    served = Call(http, b"").pipeline(name)
    if request_id not in served.timelines:
        raise NotFound(f"no timeline of {request_id[:200]!r} is kept; those of the latest requests are")
    if form is None:
        form = "page" if "text/html" in http.headers.get("accept", "") else "json"
    if form not in ("json", "page", "trace"):
        raise BadRequest(f"`form` is {form[:64]!r}; valid: json, page, trace", param="form")
    kept = served.timelines[request_id]
    if form == "json":
        return Response(msgspec.json.encode(as_facts(kept)), media_type="application/json")
    if form == "trace":
        return Response(msgspec.json.encode(as_trace(kept)), media_type="application/json")
    return HTMLResponse(as_page(kept))


def checked_inputs(served: ServedPipeline, given: dict[str, Any]) -> dict[str, Any]:
    """Inputs of the types that the pipeline's function is annotated with. Raises BadRequest naming what is not."""
    inputs = served.pipeline.inputs(**given)
    for name, edge in served.pipeline.plan.inputs.items():
        try:
            inputs[name] = msgspec.convert(inputs[name], value_of(edge.kind))
        except msgspec.ValidationError as error:
            said = str(error)
            raise BadRequest(f"`{name}`: {said[:1].lower()}{said[1:]}", param=name) from None
    return inputs


async def result_of(call: Call, run: Run) -> Any:
    """The result of a run whose client waits for it. Raises what it ended with as the client is told."""
    async with closing([run], call.http.receive):
        try:
            return await run.result()
        except Exception as error:
            raise told(error) from error


async def _events(run: Run) -> AsyncIterator[bytes]:
    while (events := await run.events.next()) is not None:
        yield b"".join(event(_encode(each)) for each in events)
    if run.error is not None:
        raise told(run.error) from run.error
    yield event(_encode({"event": "done", "usage": run.services.usage}))


def _terms(given: Any) -> TermsBody | None:
    try:
        return msgspec.convert(given, TermsBody | None)
    except msgspec.ValidationError as error:
        raise BadRequest(f"`{TERMS}`: {error}", param=TERMS) from None


def _described(served: ServedPipeline) -> dict[str, Any]:
    plan = served.pipeline.plan
    return {
        **msgspec.to_builtins(served.status()),
        "inputs": {name: words(value_of(edge.kind)) for name, edge in plan.inputs.items()},
        "outputs": {name: words(edge.kind) for name, edge in plan.outputs.items()},
        "shown": {name: words(edge.kind) for name, edge in plan.shown.items()},
    }


def _unknown(value: Any) -> Any:
    raise EngineFailed(f"the pipeline's result cannot be written as JSON: it has a {type(value).__name__}")
