"""Sends one request to an OpenAI-compatible server and records what comes back and when."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

import aiohttp
import msgspec

from foreserve import clock
from foreserve.errors import ConfigError
from foreserve.loadgen import retries
from foreserve.loadgen.arrivals import Generator
from foreserve.loadgen.prompts import Prompt
from foreserve.loadgen.records import Attempt, Ending, Recording
from foreserve.loadgen.replies import Broken, Reply
from foreserve.loadgen.sse import EventTooLong, Parser

Endpoint = Literal["chat", "completions"]
PATHS: dict[Endpoint, str] = {"chat": "/chat/completions", "completions": "/completions"}

MAX_BODY_BYTES = 64 * 2**20
MAX_ERROR_BYTES = 16 * 2**10
MAX_RETRIES = 10


class ClientOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How requests are made. `url` is a server's address, with or without its `/v1`.

    `extra` is added to every body and `headers` to every request; `tenant` is `x-tenant` where a prompt brings none.
    `timeout_s` bounds one attempt as a whole, `connect_s` its connection. `retries` is how often a refused or failed
    request is sent again, by the rules of the official client; `max_tokens` comes before a prompt's own.
    """

    url: str
    model: str
    endpoint: Endpoint = "chat"
    stream: bool = True
    max_tokens: int | None = None
    extra: dict[str, Any] = {}
    headers: dict[str, str] = {}
    tenant: str | None = None
    timeout_s: float = 300.0
    connect_s: float = 10.0
    retries: int = 0
    keep_text: bool = False

    def __post_init__(self) -> None:
        # aiohttp takes a limit of 0 for none at all, and then a run might not end.
        for name in ("timeout_s", "connect_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.retries <= MAX_RETRIES:
            raise ConfigError(f"retries is {self.retries}; valid: 0 to {MAX_RETRIES}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}; it must be at least 1")


def base_url(url: str) -> str:
    """`url` up to and with `/v1`. Raises ConfigError when it is no HTTP address."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"URL is {url!r}; it must start with http:// or https://")
    url = url.rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


async def first_model(url: str, headers: Mapping[str, str], limit_s: float = 10.0) -> str:
    """The first model that the server lists. Raises ConfigError when it cannot be asked or lists none."""
    address = f"{base_url(url)}/models"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=limit_s)) as session,
            session.get(address, headers=dict(headers)) as response,
        ):
            if response.status != 200:
                raise ConfigError(f"{address}: status {response.status}: {(await _error_body(response))[:500]}")
            body = await _whole_body(response)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise ConfigError(f"{address}: {_in_words(error, limit_s)}") from None
    try:
        models = msgspec.json.decode(body)["data"]
        return str(models[0]["id"])
    except (msgspec.DecodeError, KeyError, TypeError, IndexError):
        raise ConfigError(f"{address}: lists no model; name one") from None


class Client:
    """An `async with` context over one pool of connections. `jitter` is drawn from for the waits between retries.

    The number of connections is bounded by whoever calls `send`: the pool never makes a request wait, since a wait
    inside it would be measured as the server's.
    """

    def __init__(self, options: ClientOptions, jitter: Generator) -> None:
        self.options = options
        self._url = base_url(options.url) + PATHS[options.endpoint]
        self._jitter = jitter
        self._encoder = msgspec.json.Encoder()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        timeout = aiohttp.ClientTimeout(total=self.options.timeout_s, sock_connect=self.options.connect_s)
        # uvicorn closes idle connections after 5 s; one that is reused at that moment would fail through our fault.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0)
        headers = {"content-type": "application/json", **self.options.headers}
        self._session = aiohttp.ClientSession(
            timeout=timeout, connector=connector, headers=headers, cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def body(self, prompt: Prompt, max_tokens: int | None = None) -> bytes:
        """The request's JSON. `max_tokens` comes before the options', and that before the prompt's own."""
        fields: dict[str, Any] = {"model": self.options.model}
        if self.options.endpoint == "chat":
            fields["messages"] = prompt.as_messages()
        else:
            fields["prompt"] = prompt.as_text()
        limit = max_tokens or self.options.max_tokens or prompt.max_tokens
        if limit is not None:
            fields["max_tokens"] = limit
        if self.options.stream:
            fields["stream"] = True
            fields["stream_options"] = {"include_usage": True}
        return self._encoder.encode({**fields, **self.options.extra})

    async def send(self, body: bytes, recording: Recording, start: float) -> Ending:
        """Send until the request has ended, retries included; `recording` has all figures, relative to `start`.

        Never raises for what a server or a network does. When cancelled, `recording` keeps what was seen.
        """
        if self._session is None:
            raise RuntimeError("Client.send needs `async with Client(...)`")
        if self.options.keep_text:
            recording.text = []
        recording.sent = clock.precise() - start
        for attempt in range(self.options.retries + 1):
            began = clock.precise()
            recording.begin()
            ending, headers = await self._attempt(self._session, body, recording, start)
            recording.attempts.append(Attempt(recording.status, clock.precise() - began))
            # The official client retries until an answer begins, never in the middle of one.
            if recording.status == 200:
                break
            status = None if ending in (Ending.TIMEOUT, Ending.CONNECTION) else recording.status
            wall = clock.wall()
            if attempt == self.options.retries or not retries.worth_it(status, headers, wall):
                break
            await asyncio.sleep(retries.wait(attempt, headers, wall, float(self._jitter.random())))
        return ending

    async def _attempt(
        self, session: aiohttp.ClientSession, body: bytes, recording: Recording, start: float
    ) -> tuple[Ending, Mapping[str, str]]:
        headers: Mapping[str, str] = {}
        tenant = recording.tenant or self.options.tenant
        own = {"x-tenant": tenant} if tenant else {}
        try:
            async with session.post(self._url, data=body, headers=own) as response:
                headers = response.headers
                recording.status = response.status
                recording.request_id = headers.get("x-request-id")
                if response.status != 200:
                    recording.error = await _error_body(response)
                    return (Ending.REFUSED if response.status in (429, 503) else Ending.HTTP_ERROR), headers
                reply = Reply(recording)
                if response.content_type == "text/event-stream":
                    return await _read_stream(response, reply, start), headers
                recording.streamed = False
                reply.whole(await _whole_body(response))
                return Ending.DONE, headers
        except TimeoutError as error:
            recording.error = _in_words(error, self.options.timeout_s)
            return Ending.TIMEOUT, headers
        except (Broken, EventTooLong) as error:
            recording.error = str(error)
            return Ending.STREAM_ERROR, headers
        except (aiohttp.ClientError, OSError) as error:
            recording.error = _in_words(error, self.options.timeout_s)
            return Ending.CONNECTION, headers


async def _read_stream(response: aiohttp.ClientResponse, reply: Reply, start: float) -> Ending:
    parser = Parser()
    async for piece in response.content.iter_any():
        at = clock.precise() - start
        for event in parser.feed(piece):
            reply.event(event, at)
    for event in parser.close():
        reply.event(event, clock.precise() - start)
    if reply.complete:
        return Ending.DONE
    reply.recording.error = "the stream ended without `[DONE]`, finish reason or usage"
    return Ending.CUT


async def _whole_body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise Broken(f"the answer is longer than {MAX_BODY_BYTES} bytes")
    return bytes(body)


async def _error_body(response: aiohttp.ClientResponse) -> str:
    """The start of it. What is left is not read: the connection is closed with the response."""
    body = bytearray()
    while len(body) < MAX_ERROR_BYTES and (piece := await response.content.read(MAX_ERROR_BYTES - len(body))):
        body += piece
    return body.decode("utf-8", "replace")


def _in_words(error: BaseException, limit_s: float) -> str:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no connection in time"
    if isinstance(error, TimeoutError):
        return f"no complete answer within {limit_s:g} s"
    return f"{type(error).__name__}: {error}"
