"""A small real HTTP server that answers as OpenAI's API does, with faults on demand.

What a request gets is chosen by its prompt's text, as `fault:argument`.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


class FakeOpenAI:
    """Counts and keeps what it was sent; `gap_s` is the time before each token."""

    def __init__(self, gap_s: float = 0.0) -> None:
        self.gap_s = gap_s
        self.seen: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.calls: Counter[str] = Counter()
        self.running = 0
        self.most_running = 0
        self.url = ""

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "tiny"}, {"id": "other"}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append((dict(request.headers), body))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._answer(request, body)
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        chat = request.path.endswith("/chat/completions")
        text = body["messages"][-1]["content"] if chat else body["prompt"]
        word, _, argument = text.partition(":")
        self.calls[text] += 1
        if word == "status":
            return web.json_response({"error": {"message": "as you asked"}}, status=int(argument))
        if word == "busy_once" and self.calls[text] == 1:
            return web.json_response({"error": {"message": "busy"}}, status=429, headers={"Retry-After": argument})
        if word == "never_again":
            return web.Response(status=503, text="no", headers={"x-should-retry": "false"})
        if word == "whole" or not body.get("stream"):
            part = {"message": {"content": "hello there"}} if chat else {"text": "hello there"}
            usage = {"prompt_tokens": 3, "completion_tokens": 7}
            return web.json_response({"choices": [{**part, "finish_reason": "stop"}], "usage": usage})
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "x-request-id": "r-1"})
        await response.prepare(request)
        if word == "hang":
            await asyncio.sleep(30)
        pieces = ["", "Grüße", " an", " 世界", "!"]
        for index, piece in enumerate(pieces):
            delta = {"delta": {"content": piece}} if chat else {"text": piece}
            choice = {"index": 0, **delta, "finish_reason": "stop" if index == 4 and word != "cut" else None}
            if piece:
                await asyncio.sleep(self.gap_s)
            event = f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n".encode()
            if word == "split":
                event = event.replace(b"\n", b"\r\n")
                for byte in range(len(event)):
                    await response.write(event[byte : byte + 1])
            else:
                await response.write(event)
            if word == "cut" and index == 2:
                return response
            if word == "error_event" and index == 2:
                await response.write(b'event: error\ndata: {"error": {"message": "engine died"}}\n\n')
                return response
            if word == "rubbish" and index == 2:
                await response.write(b"data: {no json\n\n")
                return response
            if word == "drop" and index == 2:
                assert request.transport is not None
                request.transport.abort()
                return response
        if word != "no_usage":
            usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 8}}
            await response.write(f": a comment\ndata: {json.dumps(usage)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def serving(gap_s: float = 0.0) -> AsyncIterator[FakeOpenAI]:
    """The server on a free port of 127.0.0.1 for the length of the block."""
    fake = FakeOpenAI(gap_s)
    app = web.Application()
    app.router.add_get("/v1/models", fake.models)
    app.router.add_post("/v1/chat/completions", fake.answer)
    app.router.add_post("/v1/completions", fake.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield fake
    finally:
        await runner.cleanup()
