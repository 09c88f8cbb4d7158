from __future__ import annotations

import pytest

from foreserve.engines.remote import RemoteEngine
from foreserve.errors import EngineStartError
from tests.engines.scripted_server import scripted


async def test_how_much_its_cache_holds() -> None:
    async with scripted() as server:
        server.metrics = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1\n'
        made = RemoteEngine(server.url)
        assert (await made.start()).holds == {"kv_tokens": 1600.0}
        await made.close()
    async with scripted(make="llamacpp") as server:
        server.props = {"total_slots": 4, "default_generation_settings": {"n_ctx": 2048, "params": {}}}
        made = RemoteEngine(server.url)
        info = await made.start()
        assert (info.holds, info.capacity) == ({"kv_tokens": 8192.0}, {"slots": 64.0})
        await made.close()


async def test_what_a_server_says_of_itself() -> None:
    async with scripted(models=("a", "b")) as server:
        made = RemoteEngine(server.url + "/v1/", model="a", max_running=3)
        info = await made.start()
        await made.close()
        assert info.capacity == {"slots": 3.0}
        assert info.facts == {"url": server.url, "models": ["a", "b"], "make": "vllm", "context_tokens": 4096}
        with pytest.raises(EngineStartError, match="has no model 'c'; valid: a, b"):
            await RemoteEngine(server.url, model="c").start()
        server.lists_models = False
        made = RemoteEngine(server.url, model="c")
        assert (await made.start()).facts["models"] == []
        await made.close()
        server.health = 503
        with pytest.raises(EngineStartError, match="answers 503"):
            await RemoteEngine(server.url).start()


async def test_no_server_no_engine() -> None:
    with pytest.raises(EngineStartError, match="cannot be reached"):
        await RemoteEngine("http://127.0.0.1:1").start()
