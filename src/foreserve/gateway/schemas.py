"""The OpenAPI page: bodies as msgspec knows them, and every status that a path can answer with."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from foreserve import __version__
from foreserve.gateway.bodies import ChatBody, CompletionBody
from foreserve.gateway.encoder_bodies import EmbeddingsBody, RerankBody
from foreserve.gateway.errors import BODY_SCHEMA
from foreserve.gateway.inference_bodies import InferBody

BODIES = (ChatBody, CompletionBody, EmbeddingsBody, InferBody, RerankBody)
"""The structs that bodies are decoded into."""

_REF = "#/components/schemas/{name}"

_WORDS = {
    400: "The request is wrong; `param` names where.",
    401: "No API key, or one that is not known.",
    404: "No such name; the message lists those there are.",
    413: "The body is larger than this server takes.",
    429: "Refused at once, because it would not be served in time. `Retry-After` says when to come again.",
    500: "The engine ended this request with an error.",
    503: "No replica can serve now.",
    504: "The deadline passed.",
}

TERMS = [
    {"name": "x-slo-ms", "in": "header", "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 86400000}},
    {"name": "x-utility", "in": "header", "schema": {"type": "number", "minimum": 0, "maximum": 1e9}},
    {"name": "x-tenant", "in": "header", "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:@-]{1,64}$"}},
]
"""The headers that carry a request's terms."""


def describe(
    summary: str,
    *,
    body: type[Any] | None = None,
    body_schema: dict[str, Any] | None = None,
    streams: bool = False,
    not_found: bool = False,
    open_to_all: bool = False,
    reply: str = "application/json",
    statuses: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Keyword arguments of a route, for its place on the page. `body` is one of `BODIES`, or `body_schema` is given.

    What takes a body can answer with every refusal; other paths with 401 unless `open_to_all`, 404 if `not_found`, and
    `statuses`.
    """
    schema = {"$ref": _REF.format(name=body.__name__)} if body else body_schema
    errors = list(_WORDS) if schema else [*([] if open_to_all else [401]), *([404] if not_found else []), *statuses]
    ok: dict[str, Any] = {reply: {"schema": {"type": "object"} if reply == "application/json" else {"type": "string"}}}
    if streams:
        ok["text/event-stream"] = {"schema": {"type": "string"}}
    extra: dict[str, Any] = {}
    if schema:
        extra = {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "parameters": TERMS,
        }
    return {
        "summary": summary,
        "openapi_extra": extra,
        "responses": {
            200: {"description": "The answer.", "content": ok},
            **{
                status: {
                    "description": _WORDS[status],
                    "content": {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}},
                }
                for status in errors
            },
        },
    }


def install(app: FastAPI) -> None:
    """Make `app.openapi` describe the bodies too, and what is in `app.state.components`. The page is built once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            page = get_openapi(title="Foreserve", version=__version__, routes=app.routes, description=app.description)
            _, components = msgspec.json.schema_components(BODIES, ref_template=_REF)
            schemas = page.setdefault("components", {}).setdefault("schemas", {})
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            for path in page["paths"].values():
                for operation in path.values():
                    operation.get("responses", {}).pop("422", None)
            schemas.update(components)
            schemas.update(app.state.components)
            schemas["Error"] = BODY_SCHEMA
            page["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = page
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
