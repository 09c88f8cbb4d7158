from __future__ import annotations

import pytest

from foreserve.errors import ConfigError
from foreserve.services.discovery import upstream_services
from tests.engines.scripted_server import scripted


async def test_a_model_on_several_servers_has_several_replicas() -> None:
    async with scripted(models=("a", "b")) as one, scripted(models=("b", "org/c")) as two:
        found = await upstream_services([one.url + "/v1", two.url, one.url])
        urls = {name: kind.asked.urls for name, kind in found.items()}
        assert urls == {"a": [one.url], "b": [one.url, two.url], "org/c": [two.url]}
        assert {name: kind.models for name, kind in found.items()} == {"a": ("a",), "b": ("b",), "org/c": ("org/c",)}


async def test_a_file_path_is_served_by_its_files_name() -> None:
    models = ("/models/SmolLM2 135M.Q4_1.gguf",)
    async with scripted(models=models, make="llamacpp") as one:
        ((name, kind),) = (await upstream_services([one.url])).items()
        assert name == "SmolLM2-135M.Q4_1"
        assert kind.models == models
        assert kind.name_there(name) == models[0]


async def test_a_server_that_is_down_is_a_replica_of_all_when_another_answers() -> None:
    async with scripted() as one:
        found = await upstream_services([one.url, "http://127.0.0.1:1"], max_running=2)
        assert [spec.options["url"] for spec in found["m"].engines()] == [one.url, "http://127.0.0.1:1"]
        assert found["m"].asked.max_running == 2


async def test_what_cannot_be_served_is_said() -> None:
    with pytest.raises(ConfigError, match=r"no upstream server answers.*127.0.0.1:1"):
        await upstream_services(["http://127.0.0.1:1"])
    with pytest.raises(ConfigError, match="http:// or https://"):
        await upstream_services(["127.0.0.1:8000"])
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        await upstream_services(["http://127.0.0.1:1"], api_key_env="NO_SUCH_KEY")


async def test_a_server_that_lists_nothing_is_still_served() -> None:
    async with scripted() as one:
        one.lists_models = False
        assert list(await upstream_services([one.url])) == ["upstream"]
