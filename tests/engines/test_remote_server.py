from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web

from foreserve.engines.remote_server import RemoteServer, Unreachable, base_url
from tests.engines.scripted_server import scripted


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_a_url_is_taken_with_or_without_v1(url: str) -> None:
    assert base_url(url) == "http://h:1"


async def test_a_server_without_health_is_asked_for_its_models() -> None:
    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "meta": {"n_ctx": 1024}, "owned_by": "llamacpp"}, "odd", {}]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        server = RemoteServer(f"http://127.0.0.1:{runner.addresses[0][1]}", session, {}, 5.0)
        served = await server.served()
        assert (served.models, served.context_tokens, served.make) == (("m",), {"m": 1024}, "llamacpp")
        assert await server.metrics() is None
        await runner.cleanup()
        with pytest.raises(Unreachable) as caught:
            await server.well()
        assert caught.value.gone


async def test_a_slow_server_is_not_taken_for_gone() -> None:
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response()

    app = web.Application()
    app.router.add_get("/health", slow)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        server = RemoteServer(f"http://127.0.0.1:{runner.addresses[0][1]}", session, {}, 0.1)
        with pytest.raises(Unreachable, match=r"within 0.1 s") as caught:
            await server.well()
        assert not caught.value.gone
    await runner.cleanup()


async def test_a_scripted_server_is_well() -> None:
    async with scripted() as scripted_server, aiohttp.ClientSession() as session:
        await RemoteServer(scripted_server.url, session, {}, 5.0).well()
