"""A running OpenAI-compatible server (vLLM, SGLang, llama.cpp, …) as an engine: answers pass byte for byte.

Runs inline, in the gateway's event loop: it only moves bytes. Work carries a `Forward`; chunks carry one `Head`, then
`Body`s. Nothing is given out before the first byte of the answer's body, so that whatever goes wrong until then can
still be put right: by asking once more, or on another replica.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from foreserve.clock import now
from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Work
from foreserve.engines.answer import Numbered
from foreserve.engines.backlog import Backlog
from foreserve.engines.counting import Counting
from foreserve.engines.events import EventSplitter, EventTooLong, told_by_json
from foreserve.engines.forwarding import Body, Forward, Head
from foreserve.engines.json_fields import asking_for_usage, edited
from foreserve.engines.refusals import BACK_PRESSURE, refusal
from foreserve.engines.remote_call import Call, Cancelled, Lost, Silent
from foreserve.engines.remote_probe import Probe
from foreserve.engines.remote_pulse import Pulse
from foreserve.engines.remote_server import Loading, Locked, RemoteServer, Served, Unreachable, read_bounded
from foreserve.engines.remote_watch import Watch
from foreserve.errors import EngineStartError
from foreserve.network import fault

log = logging.getLogger(__name__)

_KEEPALIVE_S = 3.0
"""Below the 5 s after which uvicorn and llama.cpp close an idle connection, so that we never race with that."""
_MOST_HELD_S = 2.0
_LEAST_HELD_S = 0.1
_HOST_S = 1.0
_AWAIT_EVERY_S = 1.0
_GATHER_BYTES = 16 * 2**20
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
        began, told = now(), False
        try:
            while True:
                try:
                    served, kv_tokens, probe = await self._ready()
                    break
                except Unreachable as error:
                    loading = isinstance(error, Loading)
                    limit_s = max(self._await_s, self._loading_s if loading else 0.0)
                    if now() + _AWAIT_EVERY_S > began + limit_s:
                        raise EngineStartError(str(error)) from None
                    if loading and not told:
                        told = True
                        log.info("%s; it is asked again every %g s", error, _AWAIT_EVERY_S)
                await asyncio.sleep(_AWAIT_EVERY_S)
        except BaseException:
            await self._session.close()
            raise
        if served.make == "llamacpp":
            # It closes every answer with its timings, which tell the counts unasked.
            self._counts_tokens = False
        self._watch = Watch(self._server, self._pulse, probe)
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
        usage: dict[str, float] = {}
        cut: list[bool] = []
        response = None
        try:
            response, counting = await self._open(call, order, work.idempotent)
            if response.status >= 400:
                body = await call.within(lambda: read_bounded(response.content, _REFUSAL_BYTES), self._timeout_s)
                finish = refusal(self._server.url, response.status, response.headers, body)
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
                async with aclosing(self._parts(call, work.id, response, counting, usage, cut, backlog)) as parts:
                    async for part in parts:
                        if head is not None:
                            yield chunks.chunk(head)
                            head = None
                        if backlog is not None:
                            backlog.given(part)
                        yield chunks.chunk(Body(data=part))
                if head is not None:
                    yield chunks.chunk(head)
                finish = Finish(reason="length" if any(cut) else "stop", usage=usage)
        except Cancelled:
            finish = Finish(reason="cancelled", usage=usage)
        except Silent:
            finish = self._error(f"said nothing for {self._timeout_s:g} s", usage)
        except EventTooLong as error:
            finish = self._error(f"sent {error}", usage)
        except (aiohttp.ClientError, OSError) as error:
            finish = self._error(f"broke off its answer: {fault(error)}", usage)
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

    async def _parts(
        self,
        call: Call,
        request_id: str,
        response: aiohttp.ClientResponse,
        counting: bool,
        usage: dict[str, float],
        cut: list[bool],
        backlog: Backlog | None,
    ) -> AsyncGenerator[bytes, None]:
        """The body: whole events of an event stream; JSON in one piece (within reason); anything else as it comes.

        What it tells of tokens goes to `usage`, whether it ended at its limit to `cut`.
        """
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if response.headers.get("Content-Encoding", "identity") != "identity":
            kind = "encoded"

        async def read() -> bytes:
            if backlog is not None and backlog.full:
                await call.within(backlog.room, None)
            return await call.within(response.content.readany, self._timeout_s)

        if kind == "text/event-stream":
            events, counts = EventSplitter(), Counting(counting)
            try:
                while data := await read():
                    whole = events.feed(data)
                    # A comment keeps a connection alive, and may come of a server that does nothing else.
                    if any(not event.startswith(b":") for event in whole):
                        self._pulse.heard(request_id, now())
                    if kept := counts.feed(whole):
                        yield kept
            except (aiohttp.ClientError, OSError, Silent, EventTooLong):
                if kept := counts.rest():
                    yield kept
                raise
            finally:
                usage.update(counts.usage)
                cut.append(counts.cut)
                self._pulse.streamed(request_id, counts.usage.get("output_tokens", 0.0))
            if rest := counts.rest() + events.rest():
                yield rest
            return
        held = bytearray()
        while data := await read():
            self._pulse.heard(request_id, now())
            if kind == "application/json" and len(held) + len(data) <= _GATHER_BYTES:
                held += data
            else:
                yield bytes(held) + data
                held.clear()
        if held:
            if (said := told_by_json(bytes(held))) is not None:
                usage.update(said.usage)
                cut.append(said.cut)
            yield bytes(held)

    def _error(self, what: str, usage: dict[str, float]) -> Finish:
        return Finish(reason="error", error=f"the server {self._server.url} {what}", usage=usage)

    def _authorization(self) -> dict[str, str]:
        if self._api_key_env is None:
            return {}
        key = os.environ.get(self._api_key_env)
        if not key:
            raise EngineStartError(f"the environment variable {self._api_key_env} (`api_key_env`) is not set")
        return {"authorization": f"Bearer {key}"}

    async def _ready(self) -> tuple[Served, float | None, Probe | None]:
        """What it serves, how many tokens its KV cache holds, and what probes it. Raises Unreachable."""
        served = await self._served()
        kv_tokens = await self._kv_tokens(served)
        if not self._probe:
            return served, kv_tokens, None
        probe = Probe(self._server, self._model or next(iter(served.models), None), self._pulse)
        await probe.first(self._progress)
        return served, kv_tokens, probe

    async def _kv_tokens(self, served: Served) -> float | None:
        """How many tokens its KV cache holds, where it tells."""
        if served.make == "llamacpp" and (tokens := await self._server.cache_tokens()) is not None:
            return tokens
        page = await self._server.metrics_in_time()
        return None if page is None else page.kv_tokens

    async def _progress(self) -> float | None:
        page = await self._server.metrics_in_time()
        return None if page is None else page.progress

    async def _served(self) -> Served:
        """Raises Unreachable, and EngineStartError for what does not mend itself."""
        try:
            served = await self._server.served()
        except Locked as error:
            if self._model is None or self._api_key_env is not None:
                raise EngineStartError(str(error)) from None
            return Served(models=(self._model,))
        # llama.cpp serves its one model whatever the request calls it.
        if served.make == "llamacpp" or not served.models or self._model in (None, *served.models):
            return served
        raise EngineStartError(f"{self._server.url} has no model {self._model!r}; valid: {', '.join(served.models)}")
