"""An OpenAI-compatible server on loopback whose answers a test scripts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Script = Callable[[web.Request], Awaitable[web.StreamResponse]]

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
VLLM_METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 5.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
"""


def event(value: object) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def delta(**fields: object) -> dict[str, object]:
    return {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": fields}]}


class ScriptedServer:
    """Answers every POST by `script`, and requests for one token by `probed`; keeps what it was sent.

    While it `hangs` it answers neither, and while it is `loading` both with 503, though its health is well.
    """

    def __init__(self, models: tuple[str, ...] = ("m",), make: str = "vllm") -> None:
        self.models = models
        self.make = make
        self.script: Script = self.answer
        self.probed: Script = self.answer
        self.hangs = False
        self.loading = False
        self.seen: list[tuple[web.Request, bytes]] = []
        self.probes: list[dict[str, object]] = []
        self.metrics: str | None = None
        self.props: dict[str, object] | None = None
        self.health = 200
        self.lists_models = True
        self.running = 0
        self.busy = asyncio.Event()
        self.left = asyncio.Event()
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/props", self._props)
        app.router.add_get("/v1/models", self._models)
        app.router.add_route("*", "/{path:.*}", self._any)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(status=404) if self.metrics is None else web.Response(text=self.metrics)

    async def _props(self, request: web.Request) -> web.Response:
        return web.Response(status=404) if self.props is None else web.json_response(self.props)

    async def _models(self, request: web.Request) -> web.Response:
        if not self.lists_models:
            return web.Response(status=404)
        rows = [{"id": name, "owned_by": self.make, "max_model_len": 4096} for name in self.models]
        return web.json_response({"object": "list", "data": rows})

    async def _any(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        probe = request.path.endswith("/completions") and b'"max_tokens": 1, "temperature": 0}' in body
        if probe:
            self.probes.append(json.loads(body))
        else:
            self.seen.append((request, body))
            self.busy.set()
        self.running += 1
        try:
            return await (hang if self.hangs else load if self.loading else self.probed if probe else self.script)(
                request
            )
        except asyncio.CancelledError:
            self.left.set()
            raise
        finally:
            self.running -= 1

    async def answer(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "chat.completion", "choices": [{"message": {}}], "usage": USAGE})

    def last_json(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.seen[-1][1])
        return found


def streaming(*parts: bytes, pause_s: float = 0.0, then: Script | None = None) -> Script:
    """Writes the parts, each by itself, as an event stream."""

    async def script(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            await asyncio.sleep(pause_s)
        if then is not None:
            await then(request)
        return response

    return script


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hang(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def load(request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": "Loading model", "code": 503}}, status=503)


@asynccontextmanager
async def scripted(**words: object) -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer(**words)  # type: ignore[arg-type]
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
