from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web

from foreserve.engines.remote_server import RemoteServer, Unreachable, base_url, load_from
from tests.engines.scripted_server import VLLM_METRICS, scripted


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_a_url_is_taken_with_or_without_v1(url: str) -> None:
    assert base_url(url) == "http://h:1"


def test_load_of_each_make() -> None:
    load = load_from(VLLM_METRICS.encode())
    assert load is not None
    assert (load.running, load.waiting, load.kv_fraction) == (2, 5, 0.25)
    two = load_from(b'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 3\n')
    assert two is not None
    assert (two.running, two.waiting, two.kv_fraction) == (5, None, None)
    llama = load_from(b"# TYPE x gauge\nllamacpp:requests_processing 1\nllamacpp:requests_deferred 4\n")
    assert llama is not None
    assert (llama.running, llama.waiting) == (1, 4)
    sglang = load_from(
        b'sglang:num_running_reqs{a="b"} 1.0\nsglang:num_queue_reqs{a="b"} 2.0\nsglang:token_usage 0.5\n'
    )
    assert sglang is not None
    assert (sglang.running, sglang.waiting, sglang.kv_fraction) == (1, 2, 0.5)
    assert load_from(b"python_gc_objects_collected_total 3\n") is None


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
        assert await server.load() is None
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
