"""A gateway on loopback, in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from foreserve.app import App
from foreserve.gateway.http import create_app
from foreserve.running import Running


@asynccontextmanager
async def gateway(app: App) -> AsyncIterator[tuple[str, Running]]:
    """Its URL and what it serves, started. The ledger is checked at the end."""
    running = app.run()
    await running.start()
    config = uvicorn.Config(
        create_app(running), port=0, http="httptools", ws="none", lifespan="on", log_config=None, server_header=False
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(10):
            while not server.started:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", running
    finally:
        server.should_exit = True
        await task
        await running.stop(1.0)
    running.ledger.check()
