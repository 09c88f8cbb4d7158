"""The outermost layer of every request: its id, its key, the bounds on how many are open and on its body, its log line.

Plain ASGI: a layer that buffers would hold up streams and hide that a client has gone.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets

from fastapi.responses import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foreserve import clock
from foreserve.errors import BodyTimeout, ClientGone, TooLarge, Unauthorized, Unavailable
from foreserve.gateway import errors
from foreserve.gateway.calls import GONE, ID, KEY
from foreserve.gateway.terms import Keys

log = logging.getLogger(__name__)

PROBES = frozenset({
    "/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics",
    "/v1/foreserve/status", "/v1/foreserve/runtime", "/v1/models",
})  # fmt: skip
"""Asked again and again by machines: their lines in the log are for debugging alone."""

OPEN_PATHS = ("/health/", "/v2/health/")
"""Paths that need no key: an orchestrator's probes bring none."""

DISCARD_S = 5.0
"""How long the rest of a body that is too large is read and thrown away, so that its sender sees the answer."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Edge:
    """ASGI middleware. `keys` are those in use.

    `max_body_bytes` bounds what is read of a body, `body_s` the seconds until all of it is there, `max_open` the
    exchanges at once.
    """

    def __init__(self, app: ASGIApp, keys: Keys, max_body_bytes: int, max_open: int, body_s: float) -> None:
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._max_open = max_open
        self._open = 0
        self.body_s = body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._open += 1
        try:
            await _Exchange(self, scope, receive, send).serve(self._app)
        finally:
            self._open -= 1

    def admit(self, scope: Scope, headers: Headers) -> None:
        """Raises Unavailable, Unauthorized, or TooLarge for a body that says so itself."""
        if not scope["path"].startswith(OPEN_PATHS):
            if self._open > self._max_open:
                raise Unavailable(f"{self._max_open} requests are open, and no more are taken", retry_after=1.0)
            scope[KEY] = self._keys.check(headers.get("authorization"), scope["method"])
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            raise self.too_large(f"{length} bytes")

    def too_large(self, size: str) -> TooLarge:
        """For a body of this size, in words."""
        return TooLarge(f"the body has {size}; at most {self._max_body_bytes} bytes are taken")

    @property
    def max_body_bytes(self) -> int:
        """The bound, in bytes."""
        return self._max_body_bytes


class _Exchange:
    """One request and its reply."""

    def __init__(self, edge: Edge, scope: Scope, receive: Receive, send: Send) -> None:
        self._edge = edge
        self._scope = scope
        self._receive_raw = receive
        self._send_raw = send
        self._id = f"req-{secrets.token_hex(12)}"
        self._headers = Headers(scope=scope)
        self._traceparent = _TRACEPARENT.fullmatch(self._headers.get("traceparent", ""))
        self._read = 0
        self._status = 0
        self._begun = clock.precise()
        self._body_by: float | None = clock.now() + edge.body_s

    async def serve(self, app: ASGIApp) -> None:
        """Run the app, answer what it lets through, write the log line."""
        self._scope[ID] = self._id
        try:
            try:
                self._edge.admit(self._scope, self._headers)
                await app(self._scope, self._receive, self._send)
            except TooLarge as error:
                await self._refuse_body(error)
            except Unauthorized as error:
                await self._answer(errors.error_response(error))
            except (BodyTimeout, Unavailable) as error:
                if self._status:
                    raise
                # The rest of the body is not waited for, so nothing more can come on this connection.
                response = errors.error_response(error)
                response.headers["connection"] = "close"
                await self._answer(response)
        except (ClientGone, ClientDisconnect):
            pass  # there is nobody to tell; the log line below says 499
        except Exception:
            log.exception("%s %r failed: %s", self._scope["method"], self._scope["path"], self._id)
            message = f"something failed here that should not; the log tells more under {self._id}"
            if not self._status:
                body = errors.body(500, message, "internal_error")
                await self._answer(Response(body, 500, media_type="application/json"))
        finally:
            trace = f" trace={self._traceparent['trace']}" if self._traceparent else ""
            log.log(
                logging.DEBUG if self._scope["path"] in PROBES else logging.INFO,
                "%s %r %s %.1f ms %s%s",
                self._scope["method"],
                self._scope["path"],
                499 if self._scope.get(GONE) else self._status or 499,
                (clock.precise() - self._begun) * 1000,
                self._id,
                trace,
            )

    async def _receive(self) -> Message:
        message = await self._in_time()
        self._read += len(message.get("body", b""))
        if self._read > self._edge.max_body_bytes:
            raise self._edge.too_large("more than that")
        return message

    async def _in_time(self) -> Message:
        """The next message. Raises BodyTimeout when the body is late, unless its reply has begun already."""
        if self._body_by is None or self._status:
            return await self._receive_raw()
        try:
            async with asyncio.timeout_at(self._body_by):
                message = await self._receive_raw()
        except TimeoutError:
            if self._status:
                return await self._receive_raw()
            raise BodyTimeout(f"the body did not arrive within {self._edge.body_s:g} s") from None
        if not message.get("more_body"):
            self._body_by = None
        return message

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._id
            if self._traceparent:
                headers["traceparent"] = self._traceparent.string
        await self._send_raw(message)

    async def _answer(self, response: Response) -> None:
        await response(self._scope, self._receive_raw, self._send)

    async def _refuse_body(self, error: TooLarge) -> None:
        """Answer 413, having read the rest for a while: a sender that is cut off never looks at the answer."""
        if self._headers.get("expect", "").lower() != "100-continue":
            try:
                async with asyncio.timeout(DISCARD_S):
                    while (await self._receive_raw()).get("more_body"):
                        pass
            except TimeoutError:
                pass
        response = errors.error_response(error)
        response.headers["connection"] = "close"
        await self._answer(response)
