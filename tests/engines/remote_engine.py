"""An engine before a scripted server, and one request to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from foreserve.core import Chunk, Finish, Work
from foreserve.engines.forwarding import Forward, Head
from foreserve.engines.remote import RemoteEngine
from tests.engines.scripted_server import ScriptedServer, event

CHAT = "/v1/chat/completions"
DONE = event(b"[DONE]")


def work(body: object = None, path: str = CHAT, method: str = "POST", **words: Any) -> Work:
    raw = body if isinstance(body, bytes) else json.dumps(body or {"model": "m", "messages": []}).encode()
    forward = {name: words.pop(name) for name in ("headers", "count_tokens", "answers") if name in words}
    order = Forward(method=method, path=path, body=raw, **forward)
    return Work(**{"id": "r1", "payload": order, "cost": {"slots": 1.0}, "arrival": 0.0} | words)


@asynccontextmanager
async def engine(server: ScriptedServer, **words: Any) -> AsyncIterator[RemoteEngine]:
    made = RemoteEngine(server.url, **words)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def run(made: RemoteEngine, asked: Work, plan: Any = None) -> tuple[Head | None, bytes, Finish, list[Chunk]]:
    chunks = [chunk async for chunk in made.run(asked, plan)]
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert all(chunk.finish is None for chunk in chunks[:-1])
    head = chunks[0].data
    body = b"".join(chunk.data.data for chunk in chunks[1:-1])
    finish = chunks[-1].finish
    assert finish is not None
    return head, body, finish, chunks
