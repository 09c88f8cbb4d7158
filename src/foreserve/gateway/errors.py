"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}` and their headers.

Every reply that is not a success is made here.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterable

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from foreserve.errors import BodyTimeout, ClientGone, NotFound, RequestError, TooLarge, UpstreamRefused

log = logging.getLogger(__name__)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    503: "overloaded_error",
    504: "timeout_error",
}

BODY_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
"""The shape of every error's body, for the OpenAPI page."""


class _Detail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class _Body(msgspec.Struct, frozen=True):
    error: _Detail


_encode = msgspec.json.Encoder().encode


def body(status: int, message: str, code: str | None, param: str | None = None) -> bytes:
    """An error's JSON."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return _encode(_Body(_Detail(message, kind, param, code)))


def error_body(error: RequestError) -> bytes:
    """The JSON that tells `error`, also as the last event of a stream that had begun."""
    if isinstance(error, UpstreamRefused):
        return error.body
    return body(error.status, error.message, error.code, error.param)


def error_response(error: RequestError) -> Response:
    """The whole reply that tells `error`. What an upstream server said is passed on as it came."""
    headers = retry_headers(error.status, error.retry_after)
    if isinstance(error, UpstreamRefused):
        headers = retry_headers(error.upstream_status, error.retry_after)
        return Response(error.body, error.upstream_status, headers, media_type=as_latin1(error.content_type))
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="foreserve", Basic realm="foreserve"'
    return Response(error_body(error), error.status, headers, media_type="application/json")


def as_latin1(value: str) -> str:
    """A header's value whose Latin-1 bytes are those that came, which aiohttp has read as UTF-8."""
    return value.encode("utf-8", "surrogateescape").decode("latin-1")


def retry_headers(status: int, retry_after: float | None) -> dict[str, str]:
    """`Retry-After` in whole seconds, rounded up; `x-should-retry` where a client should not do what it would.

    A passed deadline is not helped by a second try: the same request would be as late again.
    """
    headers = {}
    if status in (429, 503):
        headers["retry-after"] = str(max(1, math.ceil(retry_after or 1.0)))
    if status == 504:
        headers["x-should-retry"] = "false"
    return headers


def no_such(what: str, name: str, there_are: Iterable[str], param: str | None) -> NotFound:
    """A NotFound that lists the names there are, and the near one first."""
    names = list(there_are)
    near = difflib.get_close_matches(name, names, n=1)
    shown = name if len(name) <= 200 else name[:200] + "…"
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return NotFound(f"there is no {what} {shown!r}.{hint} There are: {', '.join(names) or 'none'}", param=param)


def install(app: FastAPI) -> None:
    """Make `app` answer every error in this shape."""
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    if isinstance(error, (BodyTimeout, TooLarge, ClientGone)):
        raise error  # for the edge, which knows what to do with the rest of the body and with nobody
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What the router itself refuses: unknown paths and wrong methods."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 404:
        message = f"there is no path {request.url.path!r} here; /docs lists those there are"
        return Response(body(404, message, "not_found"), 404, headers, media_type="application/json")
    if error.status_code == 405:
        allowed = headers.get("Allow", headers.get("allow", "others"))
        message = f"{request.method} is not for {request.url.path!r}; valid: {allowed}"
        return Response(body(405, message, "method_not_allowed"), 405, headers, media_type="application/json")
    return Response(
        body(error.status_code, str(error.detail), None), error.status_code, headers, media_type="application/json"
    )
