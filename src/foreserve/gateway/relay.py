"""Requests that no queue is for (lists, files, whatever a server has of its own): to a server and back, as they are."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import aiohttp
from fastapi import Request as HttpRequest
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from yarl import URL

from foreserve.engines.remote_server import base_url
from foreserve.errors import NotFound, RequestError, Unavailable
from foreserve.fleet.replica import State
from foreserve.gateway.calls import ID
from foreserve.gateway.passing import back, onward
from foreserve.network import fault
from foreserve.running import Running
from foreserve.services.base import Service
from foreserve.services.upstream import Upstream

_MOST_AT_ONCE = 256
_KEEPALIVE_S = 3.0


class Relay:
    """Sends to the first server that is ready: what one request made (a file, an answer) the next should find."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self, http: HttpRequest, running: Running, target: str, body: bytes | AsyncIterator[bytes] | None
    ) -> Response:
        """The server's reply, streamed. `target` is the path with its query.

        Raises NotFound, Unavailable, and whatever `body` raises while it is sent on.
        """
        service, url = _first_ready(running, http.url.path)
        settings = service.settings
        headers = onward(http, http.scope[ID]) | {"accept-encoding": "identity"}
        if settings.api_key_env is not None:
            headers["authorization"] = f"Bearer {os.environ.get(settings.api_key_env, '')}"
        upload = _Upload(body) if isinstance(body, AsyncIterator) else None
        try:
            answer = await self._client().request(
                http.method,
                URL(url + target, encoded=True),
                data=body if upload is None else upload.parts(),
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(sock_connect=settings.connect_s, sock_read=settings.timeout_s),
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            if upload is not None and upload.failed is not None:
                raise upload.failed from None
            raise Unavailable(f"the server {url} does not answer: {fault(error)}") from None
        return StreamingResponse(_parts(answer), answer.status, back(answer.headers.items()))

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_MOST_AT_ONCE, keepalive_timeout=_KEEPALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session


class _Upload:
    """A client's body on its way. aiohttp makes a lost connection of whatever the body raises; this remembers it."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self.failed: Exception | None = None

    async def parts(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._body:
                yield part
        except (RequestError, ClientDisconnect) as error:
            self.failed = error
            raise


async def _parts(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for part in answer.content.iter_any():
            yield part
    finally:
        answer.close()


def _first_ready(running: Running, path: str) -> tuple[Upstream, str]:
    kinds = [service for service in running.services.values() if isinstance(service.kind, Upstream)]
    if not kinds:
        raise NotFound(f"there is no path {path!r} here; /docs lists those there are")
    for service in kinds:
        if (url := _ready_url(service)) is not None:
            assert isinstance(service.kind, Upstream)
            return service.kind, url
    raise Unavailable("no upstream server is ready")


def _ready_url(service: Service) -> str | None:
    for replica in service.replicas.all:
        if replica.state is State.READY and replica.info is not None:
            return base_url(str(replica.info.facts["url"]))
    return None
