"""The HTTP server's application: routers, edge and error shapes put together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from foreserve import __version__
from foreserve.clock import wall
from foreserve.gateway import (
    admin,
    embeddings,
    errors,
    functions,
    graphs,
    inference,
    metrics,
    openai,
    pipelines,
    rerank,
    runtime,
    schemas,
    servers,
    trace,
    upstream,
)
from foreserve.gateway.edge import Edge
from foreserve.gateway.recording import Recordings
from foreserve.gateway.terms import Keys
from foreserve.running import Running

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(running: Running, lifespan: Lifespan | None = None) -> FastAPI:
    """Everything that is served of `running`, as an ASGI application. Call it on the event loop that will serve.

    Starting and stopping `running` is the caller's, in its `lifespan` or outside.
    """
    app = FastAPI(
        title="Foreserve",
        version=__version__,
        description="Models and functions behind one queue. Language models speak OpenAI's API.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.running = running
    app.state.created = wall()
    app.state.metrics = metrics.Metrics(running)
    app.state.recordings = Recordings(running)
    app.state.components = {}
    parts = (
        openai,
        embeddings,
        rerank,
        pipelines,
        functions,
        graphs,
        inference,
        metrics,
        admin,
        runtime,
        servers,
        trace,
    )
    for part in parts:
        app.include_router(part.router)
    functions.install(app)
    upstream.install(app)
    errors.install(app)
    schemas.install(app)
    server = running.settings.server
    app.add_middleware(
        Edge,
        keys=Keys(server.api_keys),
        max_body_bytes=server.max_body_bytes,
        max_open=server.max_connections,
        body_s=server.body_s,
    )
    return app
