from __future__ import annotations

from typing import Any

import pytest

from foreserve.app import App
from foreserve.errors import ConfigError, EngineStartError
from foreserve.services.discovery import Discovery
from foreserve.services.upstream import Upstream
from tests.engines.scripted_server import scripted


async def test_a_model_on_several_servers_has_several_replicas() -> None:
    async with scripted(models=("a", "b")) as one, scripted(models=("b", "org/c")) as two:
        found = await Discovery([one.url + "/v1", two.url, one.url]).services()
        urls = {name: kind.asked.urls for name, kind in found.items()}
        assert urls == {"a": [one.url], "b": [one.url, two.url], "org/c": [two.url]}
        assert {name: kind.models for name, kind in found.items()} == {"a": ("a",), "b": ("b",), "org/c": ("org/c",)}


async def test_a_file_path_is_served_by_its_files_name() -> None:
    models = ("/models/SmolLM2 135M.Q4_1.gguf",)
    async with scripted(models=models, make="llamacpp") as one:
        ((name, kind),) = (await Discovery([one.url]).services()).items()
        assert name == "SmolLM2-135M.Q4_1"
        assert kind.models == models
        assert kind.name_there(name) == models[0]


async def test_a_server_that_is_down_is_a_replica_of_all_when_another_answers() -> None:
    async with scripted() as one:
        found = await Discovery([one.url, "http://127.0.0.1:1"], max_running=2).services()
        assert [spec.options["url"] for spec in found["m"].engines()] == [one.url, "http://127.0.0.1:1"]
        assert found["m"].asked.max_running == 2


async def test_what_cannot_be_served_is_said() -> None:
    with pytest.raises(ConfigError, match=r"no upstream server answers.*127.0.0.1:1"):
        await Discovery(["http://127.0.0.1:1"]).services()
    with pytest.raises(ConfigError, match="http:// or https://"):
        await Discovery(["127.0.0.1:8000"]).services()
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        await Discovery(["http://127.0.0.1:1"], api_key_env="NO_SUCH_KEY").services()


async def test_a_server_that_lists_nothing_is_still_served() -> None:
    async with scripted() as one:
        one.lists_models = False
        assert list(await Discovery([one.url]).services()) == ["upstream"]


async def test_what_a_server_that_was_down_has_alone_is_found_when_it_answers() -> None:
    async with scripted(models=("a",)) as one, scripted(models=("a", "b")) as late:
        await late.stop()
        found = Discovery([one.url, late.url])
        assert list(await found.services()) == ["a"]
        assert (found.silent, await found.more()) == ([late.url], {})
        await late.start()
        ((name, kind),) = (await found.more()).items()
        assert (name, kind.asked.urls, found.silent) == ("b", [late.url], [])


async def test_a_running_app_serves_one_more() -> None:
    async with scripted(models=("a",)) as one, scripted(models=("b",)) as late:
        found = Discovery([one.url, late.url])
        services: dict[str, Any] = dict(await found.services())
        running = App(state={"history": False}, a=services["a"]).run()
        await running.start()
        await running.add("b", services["b"])
        assert running.services["b"].ready
        late.hangs = True
        with pytest.raises(EngineStartError):
            await running.add("c", Upstream([late.url], model="b", probe_limit_s=0.3))
        assert list(running.services) == ["a", "b"]
        await running.stop(0.0)
