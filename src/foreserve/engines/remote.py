"""A running OpenAI-compatible server (vLLM, SGLang, llama.cpp, …) as an engine: answers pass byte for byte.

Runs inline, in the gateway's event loop: it only moves bytes. Work carries a `Forward`; chunks carry one `Head`, then
`Body`s. Nothing is given out before the first byte of the answer's body, so that whatever goes wrong until then can
still be put right: by asking once more, or on another replica.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
from yarl import URL

from foreserve.clock import now
from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Work
from foreserve.engines.events import EventSplitter, EventTooLong, told, told_by_json
from foreserve.engines.forwarding import Body, Forward, Head
from foreserve.engines.json_fields import asking_for_usage
from foreserve.engines.refusals import refusal
from foreserve.engines.remote_call import Call, Cancelled, Lost, Numbered, Silent
from foreserve.engines.remote_server import Locked, RemoteServer, Served, Unreachable, read_bounded
from foreserve.errors import EngineStartError

log = logging.getLogger(__name__)

_KEEPALIVE_S = 3.0
"""Below the 5 s after which uvicorn and llama.cpp close an idle connection, so that we never race with that."""
_START_PROBE_S = 2.0
_WATCH_S = 1.0
_UNSURE = 5
"""So many probes in a row must time out, with not one byte of any answer between, before a server counts as hung."""
_GATHER_BYTES = 16 * 2**20
_REFUSAL_BYTES = 2**20


class RemoteEngine:
    """Forwards requests to the server at `url`, at most `max_running` at once.

    `api_key_env` names the environment variable with the server's key (`None`: the client's own header is passed).
    `model` must be among those the server lists. `timeout_s` bounds the server's silence before and within an answer,
    `connect_s` making a connection and each probe, `start_s` how long `start` waits for a server that is not up.

    An answer of 4xx, 429 and 503 included, is a finish `rejected` whose `detail` holds it (`status`, `body`,
    `content_type`, `headers`, `retry_after`); other 5xx are a finish `error` with the same detail. A server that goes
    away ends `failed()`: its host then treats this engine as a process that has exited, and a new one waits in `start`
    until the server is back.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key_env: str | None = None,
        max_running: int = 64,
        connect_s: float = 5.0,
        timeout_s: float = 300.0,
        start_s: float = 300.0,
    ) -> None:
        self._url = url
        self._model = model
        self._api_key_env = api_key_env
        self._max_running = max_running
        self._connect_s = connect_s
        self._timeout_s = timeout_s
        self._start_s = start_s
        self._calls: dict[str, Call] = {}
        self._counts_tokens: bool | None = None
        self._load: EngineLoad | None = None
        self._bytes = 0

    async def start(self) -> EngineInfo:
        """Waits until the server answers. Raises EngineStartError when it does not, or lacks the model."""
        headers = self._key()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_running + 4, keepalive_timeout=_KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        self._server = RemoteServer(self._url, self._session, headers, self._connect_s)
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        try:
            served = await self._wait_for_server()
        except BaseException:
            await self._session.close()
            raise
        if served.make == "llamacpp":
            # It closes every answer with its timings, which tell the counts unasked.
            self._counts_tokens = False
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self._server.url}")
        facts: dict[str, Any] = {"url": self._server.url, "models": list(served.models), "make": served.make}
        context = served.context_tokens.get(self._model or "", max(served.context_tokens.values(), default=None))
        if context is not None:
            facts["context_tokens"] = context
        return EngineInfo(batching="continuous", capacity={"slots": float(self._max_running)}, facts=facts)

    async def run(self, work: Work, plan: object = None) -> AsyncIterator[Chunk]:
        """Yields a `Head`, `Body`s and the finish, whose usage is what the server told."""
        call = self._calls[work.id] = Call()
        chunks = Numbered(work)
        usage: dict[str, float] = {}
        response = None
        try:
            response, counting = await self._open(call, work)
            if response.status >= 400:
                body = await call.within(lambda: read_bounded(response.content, _REFUSAL_BYTES), self._timeout_s)
                finish = refusal(self._server.url, response.status, response.headers, body)
            else:
                head: Head | None = Head(
                    status=response.status,
                    content_type=response.headers.get("Content-Type", ""),
                    headers=dict(response.headers),
                )
                async for part in self._parts(call, response, counting, usage):
                    if head is not None:
                        yield chunks.data(head)
                        head = None
                    yield chunks.data(Body(data=part))
                if head is not None:
                    yield chunks.data(head)
                finish = Finish(reason="stop", usage=usage)
        except Cancelled:
            finish = Finish(reason="cancelled", usage=usage)
        except Silent:
            finish = self._error(f"said nothing for {self._timeout_s:g} s", usage)
        except Lost as lost:
            finish = Finish(reason="error", error=str(lost), detail={"retry": True})
        except EventTooLong as error:
            finish = self._error(f"sent {error}", usage)
        except (aiohttp.ClientError, OSError) as error:
            finish = self._error(f"broke off its answer: {error or type(error).__name__}", usage)
        finally:
            self._calls.pop(work.id, None)
            if response is not None:
                # Gives the connection back when the answer was read to its end, else closes it: that is what cancels.
                response.close()
        yield chunks.finish(finish)

    def run_batch(self, works: Sequence[Work], plan: object = None) -> AsyncIterator[Sequence[Chunk]]:
        raise NotImplementedError("a remote server is a continuous engine: `run`")

    async def cancel(self, request_id: str) -> None:
        """Closes the request's connection; the server stops when it sees that."""
        if call := self._calls.get(request_id):
            call.cancel()

    async def load(self) -> EngineLoad:
        """What `/metrics` said within the last second or two, else nothing known."""
        return self._load or EngineLoad()

    async def failed(self) -> str:
        """Returns, with the reason in words, once the server is gone. This engine is of no use from then on."""
        return await asyncio.shield(self._failed)

    async def close(self) -> None:
        """Cancels what runs and closes all connections."""
        self._watcher.cancel()
        for call in self._calls.values():
            call.cancel()
        await asyncio.gather(self._watcher, return_exceptions=True)
        await self._session.close()

    # --- one answer

    async def _open(self, call: Call, work: Work) -> tuple[aiohttp.ClientResponse, bool]:
        """The answer, its head received, and whether we asked it for token counts on our own account.

        Whether a server takes `stream_options` is learned from the first answer: a 400 or 422 is asked once more
        without it, and what comes then is the client's answer.
        """
        order: Forward = work.payload
        asking = order.count_tokens and self._counts_tokens is not False
        response = await self._send(call, work, asking_for_usage(order.body) if asking else order.body)
        if not asking or self._counts_tokens is not None:
            return response, asking
        if response.status not in (400, 422):
            if response.status < 400:
                self._counts_tokens = True
            return response, asking
        response.close()
        response = await self._send(call, work, order.body)
        if response.status < 400:
            self._counts_tokens = False
            log.info("%s refuses stream_options: tokens of its streams are not counted", self._server.url)
        return response, False

    async def _send(self, call: Call, work: Work, body: bytes) -> aiohttp.ClientResponse:
        """The answer's head. A lost connection is tried once more when the server is well; else raises Lost."""
        order: Forward = work.payload
        headers = {**order.headers, "Accept-Encoding": "identity", **self._key()}
        url = URL(self._server.url + order.path, encoded=True)
        for last in (not work.idempotent, True):
            try:
                return await call.within(
                    lambda: self._session.request(
                        order.method, url, data=body or None, headers=headers, allow_redirects=False
                    ),
                    self._timeout_s,
                )
            except aiohttp.ClientConnectionError as error:
                if (reason := await self._gone()) is not None:
                    self._fail(reason)
                    raise Lost(reason) from None
                if last:
                    raise
                log.info("%s closed a connection before it answered (%s): asking once more", self._server.url, error)
        raise AssertionError("unreachable")

    async def _parts(
        self, call: Call, response: aiohttp.ClientResponse, counting: bool, usage: dict[str, float]
    ) -> AsyncIterator[bytes]:
        """The body: whole events of an event stream; JSON in one piece (within reason); anything else as it comes."""
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if response.headers.get("Content-Encoding", "identity") != "identity":
            kind = "encoded"
        events = EventSplitter()
        held = bytearray()
        while data := await call.within(response.content.readany, self._timeout_s):
            self._bytes += len(data)
            if kind == "text/event-stream":
                kept = [event for event in events.feed(data) if not _counted(event, usage, counting)]
                if kept:
                    yield b"".join(kept)
            elif kind == "application/json" and len(held) + len(data) <= _GATHER_BYTES:
                held += data
            else:
                yield bytes(held) + data
                held.clear()
        if held and (said := told_by_json(bytes(held))) is not None:
            usage.update(said.usage)
        if rest := bytes(held) + events.rest():
            yield rest

    def _error(self, what: str, usage: dict[str, float]) -> Finish:
        return Finish(reason="error", error=f"the server {self._server.url} {what}", usage=usage)

    def _key(self) -> dict[str, str]:
        if self._api_key_env is None:
            return {}
        key = os.environ.get(self._api_key_env)
        if not key:
            raise EngineStartError(f"the environment variable {self._api_key_env} (`api_key_env`) is not set")
        return {"Authorization": f"Bearer {key}"}

    # --- the server's health

    async def _wait_for_server(self) -> Served:
        until = now() + self._start_s
        told_of_it = False
        while True:
            try:
                served = await self._server.served()
            except Locked as error:
                if self._model is None or self._api_key_env is not None:
                    raise EngineStartError(str(error)) from None
                return Served(models=(self._model,))
            except Unreachable as error:
                if now() + _START_PROBE_S > until:
                    raise EngineStartError(f"{error} (tried for {self._start_s:g} s)") from None
                if not told_of_it:
                    log.warning("%s; trying every %g s", error, _START_PROBE_S)
                told_of_it = True
                await asyncio.sleep(_START_PROBE_S)
            else:
                break
        # llama.cpp serves its one model whatever the request calls it.
        known = served.make == "llamacpp" or not served.models or self._model in (None, *served.models)
        if not known:
            raise EngineStartError(
                f"{self._server.url} has no model {self._model!r}; it serves: {', '.join(served.models)}"
            )
        return served

    async def _watch(self) -> None:
        """Takes the load, or where there is none the health, every second, and notices when the server goes away."""
        unsure, seen = 0, self._bytes
        while not self._failed.done():
            await asyncio.sleep(_WATCH_S if unsure == 0 else _WATCH_S / 2)
            try:
                self._load = await self._server.load()
                if self._load is None:
                    await self._server.well()
                unsure = 0
            except Unreachable as error:
                self._load = None
                unsure = unsure + 1 if seen == self._bytes else 1
                seen = self._bytes
                if (error.gone and unsure >= 2) or unsure >= _UNSURE:
                    self._fail(str(error))

    async def _gone(self) -> str | None:
        """Why the server is gone, or `None` when it is there (or only slow to answer)."""
        try:
            await self._server.well()
        except Unreachable as error:
            return str(error) if error.gone else None
        return None

    def _fail(self, reason: str) -> None:
        if not self._failed.done():
            self._failed.set_result(reason)


def _counted(event: bytes, usage: dict[str, float], ours: bool) -> bool:
    """Note the counts that `event` tells. True when it tells nothing else and only we had asked for it."""
    said = told(event)
    if said is None:
        return False
    usage.update(said.usage)
    return ours and said.apart
