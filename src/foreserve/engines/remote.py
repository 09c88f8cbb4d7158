"""A running OpenAI-compatible server (vLLM, SGLang, llama.cpp, …) as an engine: answers pass byte for byte.

Runs inline, in the gateway's event loop: it only moves bytes. Work carries a `Forward`; chunks carry one `Head`, then
`Body`s. Nothing is given out before the first byte of the answer's body, so that whatever goes wrong until then can
still be put right: by asking once more, or on another replica.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from foreserve.clock import now
from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Work
from foreserve.engines.answer import Numbered
from foreserve.engines.backlog import Backlog
from foreserve.engines.events import EventTooLong
from foreserve.engines.forwarding import Body, Forward, Head
from foreserve.engines.json_fields import asking_for_usage, edited
from foreserve.engines.refusals import BACK_PRESSURE, refusal
from foreserve.engines.remote_body import RemoteBody, Told
from foreserve.engines.remote_call import Call, Cancelled, Lost, Silent
from foreserve.engines.remote_pulse import Pulse
from foreserve.engines.remote_server import RemoteServer, read_bounded
from foreserve.engines.remote_start import RemoteStart
from foreserve.engines.remote_watch import Watch
from foreserve.errors import EngineStartError
from foreserve.network import fault

log = logging.getLogger(__name__)

_KEEPALIVE_S = 3.0
"""Below the 5 s after which uvicorn and llama.cpp close an idle connection, so that we never race with that."""
_MOST_HELD_S = 2.0
_LEAST_HELD_S = 0.1
_HOST_S = 1.0
_REFUSAL_BYTES = 2**20


class RemoteEngine:
    """Forwards requests to the server at `url`, at most `max_running` at once.

    It reads no faster than the client does where its `Backlog` is kept: the server then waits, as it would for a slow
    client of its own.

    `api_key_env` names the environment variable with the server's key (`None`: the client's own header is passed).
    `model` must be among those the server lists. `timeout_s` bounds the server's silence before and within an answer,
    `connect_s` making a connection and each probe. With `priority` a plan's `{"priority": n}` becomes the body's
    `priority` (vLLM: lower is earlier), whatever the client said there.

    An answer of 400 or above is a finish whose `detail` holds it (see `refusals`). 429 and 503 are back-pressure: they
    keep their place here for as long as the server asked for (at most 2 s), and work that may run twice is then to be
    tried once more. 503 of a server that has only come up (it has answered no request otherwise since) says that it
    still loads: for `loading_s` such work is to be tried as often as its queue allows. A server that goes away ends
    `failed()`: its host then treats this engine as a process that has exited, and the fleet starts new ones until the
    server is back. With `probe` so does one that hangs: silent for `probe_every_s` it is asked for one token, and has
    `probe_limit_s` for that or any other sign, at least `probe_busy_s` while it owes a first byte and does not tell its
    progress (see `remote_pulse`). It is then also asked before this engine is ready. For a server that is only being
    started, the start waits up to `await_s`; for one that answers 503 to the probe, and so is loading, up to
    `loading_s`.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key_env: str | None = None,
        max_running: int = 64,
        priority: bool = False,
        connect_s: float = 5.0,
        timeout_s: float = 300.0,
        probe: bool = False,
        probe_every_s: float = 5.0,
        probe_limit_s: float = 5.0,
        probe_busy_s: float = 120.0,
        await_s: float = 0.0,
        loading_s: float = 0.0,
    ) -> None:
        self._url = url
        self._model = model
        self._api_key_env = api_key_env
        self._max_running = max_running
        self._priority = priority
        self._connect_s = connect_s
        self._timeout_s = timeout_s
        self._probe = probe
        self._probe_every_s = probe_every_s
        self._probe_limit_s = probe_limit_s
        self._probe_busy_s = probe_busy_s
        self._await_s = await_s
        self._loading_s = loading_s
        self._came_up = self._answered = 0.0
        """When the server was started, as far as we saw, and when it last answered a request other than by 503."""
        self._calls: dict[str, Call] = {}
        self._counts_tokens: bool | None = None
        self._started = False

    async def start(self) -> EngineInfo:
        """Asks the server for its models. Raises EngineStartError when it does not answer, or lacks the model."""
        self._key = self._authorization()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_running + 4, keepalive_timeout=_KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        self._server = RemoteServer(self._url, self._session, self._key, self._connect_s)
        self._pulse = Pulse(self._probe_every_s, self._probe_limit_s, self._probe_busy_s, self._timeout_s, now())
        asked = RemoteStart(
            self._server, self._model, self._api_key_env is not None, self._pulse if self._probe else None
        )
        try:
            found = await asked.found(self._await_s, self._loading_s)
        except BaseException:
            await self._session.close()
            raise
        served, kv_tokens = found.served, found.kv_tokens
        if served.make == "llamacpp":
            # It closes every answer with its timings, which tell the counts unasked.
            self._counts_tokens = False
        self._watch = Watch(self._server, self._pulse, found.probe)
        self._started = True
        self._came_up = now()
        facts: dict[str, Any] = {"url": self._server.url, "models": list(served.models), "make": served.make}
        context = served.context_tokens.get(self._model or "", max(served.context_tokens.values(), default=None))
        if context is not None:
            facts["context_tokens"] = context
        return EngineInfo(
            batching="continuous",
            capacity={"slots": float(self._max_running)},
            facts=facts,
            holds={} if kv_tokens is None else {"kv_tokens": kv_tokens},
        )

    async def run(self, work: Work, plan: object = None) -> AsyncIterator[Chunk]:
        """Yields a `Head`, `Body`s and the finish: usage as the server told, `length` where it cut an answer."""
        order = msgspec.convert(work.payload, Forward)
        if self._priority and isinstance(plan, Mapping) and "priority" in plan:
            order = msgspec.structs.replace(order, body=edited(order.body, {"priority": plan["priority"]}))
        call = self._calls[work.id] = Call()
        self._pulse.began(work.id, len(order.body), order.answers, now())
        chunks = Numbered(work)
        backlog = Backlog.of(work.id)
        if backlog is not None:
            backlog.restart()
        told = Told()
        response = None
        try:
            response, counting = await self._open(call, order, work.idempotent)
            if response.status >= 400:
                said = await call.within(lambda: read_bounded(response.content, _REFUSAL_BYTES), self._timeout_s)
                finish = refusal(self._server.url, response.status, response.headers, said)
                loading = self._loading(response.status)
                if work.idempotent and (loading or (response.status in BACK_PRESSURE and work.attempt == 0)):
                    response.close()
                    finish = await self._held_back(call, finish, loading=loading)
            else:
                self._answered = now()
                head: Head | None = Head(
                    status=response.status,
                    content_type=response.headers.get("Content-Type", ""),
                    headers=dict(response.headers),
                )
                body = RemoteBody(
                    work.id,
                    response,
                    call,
                    self._pulse,
                    counting=counting,
                    backlog=backlog,
                    timeout_s=self._timeout_s,
                )
                told = body.told
                async with aclosing(body.parts()) as parts:
                    async for part in parts:
                        if head is not None:
                            yield chunks.chunk(head)
                            head = None
                        if backlog is not None:
                            backlog.given(part)
                        yield chunks.chunk(Body(data=part))
                if head is not None:
                    yield chunks.chunk(head)
                finish = Finish(reason="length" if told.cut else "stop", usage=told.usage)
        except Cancelled:
            finish = Finish(reason="cancelled", usage=told.usage)
        except Silent:
            finish = self._error(f"said nothing for {self._timeout_s:g} s", told.usage)
        except EventTooLong as error:
            finish = self._error(f"sent {error}", told.usage)
        except (aiohttp.ClientError, OSError) as error:
            finish = self._error(f"broke off its answer: {fault(error)}", told.usage)
            if not chunks.any:
                finish = await self._lost(finish)
        except Lost as lost:
            finish = await self._lost(Finish(reason="error", error=str(lost)))
        finally:
            self._calls.pop(work.id, None)
            self._pulse.ended(work.id)
            if response is not None:
                # Gives the connection back when the answer was read to its end, else closes it: that is what cancels.
                response.close()
        yield chunks.chunk(finish=finish)

    def run_batch(self, works: Sequence[Work], plan: object = None) -> AsyncIterator[Sequence[Chunk]]:
        raise NotImplementedError("a remote server is a continuous engine: `run`")

    async def cancel(self, request_id: str) -> None:
        """Closes the request's connection; the server stops when it sees that."""
        if call := self._calls.get(request_id):
            call.cancel()

    async def load(self) -> EngineLoad:
        """What `/metrics` said within the last second or two; its pace at least by the streams that have ended."""
        load = self._watch.load or EngineLoad()
        return load if load.last_step_s is not None else msgspec.structs.replace(load, last_step_s=self._pulse.step_s)

    async def failed(self) -> str:
        """Returns, with the reason in words, once the server is gone. This engine is of no use from then on."""
        return await self._watch.failed()

    async def close(self) -> None:
        """Cancels what runs and closes all connections."""
        for call in self._calls.values():
            call.cancel()
        if self._started:
            await self._watch.close()
            await self._session.close()

    # --- one answer

    async def _open(self, call: Call, order: Forward, again: bool) -> tuple[aiohttp.ClientResponse, bool]:
        """The answer, its head received, and whether we asked it for token counts on our own account.

        Whether a server takes `stream_options` is learned from the first answer: a 400 or 422 is asked once more
        without it, and what comes then is the client's answer.
        """
        asking = order.count_tokens and self._counts_tokens is not False
        response = await self._send(call, order, asking_for_usage(order.body) if asking else order.body, again)
        if not asking or self._counts_tokens is not None:
            return response, asking
        if response.status not in (400, 422):
            if response.status < 400:
                self._counts_tokens = True
            return response, asking
        response.close()
        response = await self._send(call, order, order.body, again)
        if response.status < 400:
            self._counts_tokens = False
            log.info("%s refuses stream_options: tokens of its streams are not counted", self._server.url)
        return response, False

    async def _send(self, call: Call, order: Forward, body: bytes, again: bool) -> aiohttp.ClientResponse:
        """The answer's head. A lost connection is tried `again` while the server is well. Raises Lost if it is gone."""
        headers = {**order.headers, "accept-encoding": "identity", **self._key}
        url = URL(self._server.url + order.path, encoded=True)
        for last in (not again, True):
            try:
                return await call.within(
                    lambda: self._session.request(
                        order.method, url, data=body or None, headers=headers, allow_redirects=False
                    ),
                    self._timeout_s,
                )
            except aiohttp.ClientConnectionError as error:
                self._came_up = now()  # what answers next may be another that has only been started
                if (reason := await self._watch.lost()) is not None:
                    raise Lost(reason) from None
                if last:
                    raise
                log.info("%s closed a connection before it answered (%s): asking once more", self._server.url, error)
        raise AssertionError("unreachable")

    def _loading(self, status: int) -> bool:
        """Whether an error answer says that the server has come up and is not ready."""
        if status != 503:
            self._answered = now()
        came_up = max(self._came_up, self._watch.missed)
        return came_up > self._answered and now() < came_up + self._loading_s

    async def _held_back(self, call: Call, finish: Finish, *, loading: bool) -> Finish:
        """The server has no room: keep ours taken for a moment, so that the queue, not the server, is tried again."""
        wait = finish.detail["retry_after"]
        wait = min(max(_LEAST_HELD_S, 0.5 if wait is None else wait), _MOST_HELD_S)
        await call.within(lambda: asyncio.sleep(wait), wait + 1.0)
        return msgspec.structs.replace(finish, detail={**finish.detail, "retry": "loading" if loading else True})

    async def _lost(self, finish: Finish) -> Finish:
        """Nothing of the answer has been given out, so it can be had elsewhere, or here once more.

        When the server is gone the host ends this engine during the wait, which is what sends its work elsewhere.
        """
        if await self._watch.lost() is not None:
            await asyncio.sleep(_HOST_S)
        return msgspec.structs.replace(finish, detail={"retry": True})

    def _error(self, what: str, usage: dict[str, float]) -> Finish:
        return Finish(reason="error", error=f"the server {self._server.url} {what}", usage=usage)

    def _authorization(self) -> dict[str, str]:
        if self._api_key_env is None:
            return {}
        key = os.environ.get(self._api_key_env)
        if not key:
            raise EngineStartError(f"the environment variable {self._api_key_env} (`api_key_env`) is not set")
        return {"authorization": f"Bearer {key}"}
