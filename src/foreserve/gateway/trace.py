"""`GET /v1/foreserve/trace`: what is served from now on, a line for each request that has ended. See docs/traces.md."""

from __future__ import annotations

import asyncio
from typing import cast

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foreserve.errors import BadRequest, Forbidden
from foreserve.gateway.calls import KEY, Call
from foreserve.gateway.recording import Recording, Recordings
from foreserve.settings import ApiKey

router = APIRouter(tags=["Operations"])

LINES = "application/x-ndjson"
BLOCK_TOKENS = 32
"""Tokens of one prefix block, where the request does not say."""

LEAST_BLOCK, MOST_BLOCK = 16, 65_536
"""Bounds of `block_tokens`: each block is a hash to make, to hold and to send."""

MOST_S = 31 * 86_400.0
STALL_S = 60.0
"""A reader that takes nothing for so long is cut off."""


# Not on the OpenAPI page: what tries the paths there one by one would wait for its end for ever.
@router.get("/v1/foreserve/trace", include_in_schema=False)
async def record(http: HttpRequest) -> Response:
    """Requests from now on, in our trace format, each when it has ended: lengths and hashes.

    Parameters: `seconds` (of arrivals; without it until the reader goes), `block_tokens` (of one prefix hash),
    `text=1` (prompts and answers too, where `server.record_text` allows it). An API key records its own tenant.
    """
    call = Call(http, b"")
    key: ApiKey | None = http.scope.get(KEY)
    recordings = cast(Recordings, http.app.state.recordings)
    text = _flag(http, "text")
    if text and not call.running.settings.server.record_text:
        raise Forbidden("this server records no text; `server: {record_text: true}` in its app file allows it")
    seconds = _number(http, "seconds", 0.001, MOST_S)
    block_tokens = _number(http, "block_tokens", LEAST_BLOCK, MOST_BLOCK)
    recording = recordings.begin(
        tenant=None if key is None or key.records_all else key.tenant,
        block_tokens=BLOCK_TOKENS if block_tokens is None else int(block_tokens),
        text=text,
        seconds=seconds,
    )
    return Lines(recordings, recording)


def _flag(http: HttpRequest, name: str) -> bool:
    given = http.query_params.get(name, "0")
    if given not in ("0", "1", "false", "true"):
        raise BadRequest(f"`{name}` is {given[:64]!r}; valid: 0, 1", param=name)
    return given in ("1", "true")


def _number(http: HttpRequest, name: str, least: float, most: float) -> float | None:
    given = http.query_params.get(name)
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise BadRequest(f"`{name}` is {given[:64]!r}; it must be a number from {least:g} to {most:g}", param=name)
    return value


class Lines(Response):
    """A recording, sent as it is made, until it ends, its reader goes, or the server stops."""

    media_type = LINES

    def __init__(self, recordings: Recordings, recording: Recording) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._recordings = recordings
        self._recording = recording

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        listener = asyncio.create_task(self._listen(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while (lines := await self._recording.next()) is not None:
                async with asyncio.timeout(STALL_S):
                    await send({"type": "http.response.body", "body": lines, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            pass  # left half sent, so that the reader sees that it is not whole
        finally:
            listener.cancel()
            self._recordings.end(self._recording)

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._recording.close()
