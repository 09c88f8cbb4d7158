from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from foreserve.app import App
from foreserve.services.llm import LLM
from foreserve.services.upstream import Upstream
from tests.engines.scripted_server import ScriptedServer, scripted
from tests.gateway.served import gateway

ALL = "/v1/foreserve/servers"
PATH = "/v1/foreserve/services/org/m/servers"


@asynccontextmanager
async def front(server: dict[str, Any] | None = None) -> AsyncIterator[tuple[str, ScriptedServer, ScriptedServer]]:
    async with scripted() as one, scripted() as two:
        services: Any = {"org/m": Upstream([one.url], model="m"), "tiny": LLM("simulated")}
        async with gateway(App(state={"history": False}, server=server, **services)) as (url, _):
            yield url, one, two


async def call(method: str, url: str, **words: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as client, client.request(method, url, **words) as reply:
        return reply.status, await reply.json()


async def test_a_server_joins_is_listed_and_leaves() -> None:
    async with front() as (url, one, two):
        assert (await call("POST", url + PATH, json={"url": two.url}))[0] == 201
        status, said = await call("POST", url + PATH, json={"url": two.url + "/v1"})
        assert (status, said["url"], said["state"]) == (200, two.url, "ready")
        status, said = await call("GET", url + ALL)
        assert [s["url"] for s in said["services"]["org/m"]] == [one.url, two.url]
        status, said = await call("GET", url + PATH)
        assert (status, len(said["servers"])) == (200, 2)
        status, said = await call("DELETE", url + PATH, params={"url": one.url})
        assert (status, said["state"]) == (202, "leaving")
        status, said = await call("DELETE", url + PATH, json={"url": two.url})
        assert status == 202
        status, said = await call("DELETE", url + PATH, params={"url": one.url})
        assert status == 404


async def test_what_is_wrong_is_said() -> None:
    async with front() as (url, *_):
        for path, body, status, words in (
            (PATH, {"url": "http://127.0.0.1:1"}, 400, "cannot be reached"),
            (PATH, {"uri": "x"}, 400, "url"),
            (PATH, {"url": "http://169.254.169.254/latest"}, 403, "may not join"),
            ("/v1/foreserve/services/nope/servers", {"url": "x"}, 404, "org/m"),
            ("/v1/foreserve/services/tiny/servers", {"url": "x"}, 404, "org/m"),
        ):
            got, said = await call("POST", url + path, json=body)
            assert got == status, said
            assert words in said["error"]["message"]


async def test_with_keys_only_an_admins_may() -> None:
    keys = {"api_keys": [{"key": "user"}, {"key": "root", "admin": True}]}
    async with front(keys) as (url, one, two):
        for key, status in ((None, 401), ("user", 403), ("root", 201)):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            assert (await call("POST", url + PATH, json={"url": two.url}, headers=headers))[0] == status
        user, root = ({"authorization": f"Bearer {key}"} for key in ("user", "root"))
        assert (await call("DELETE", url + PATH, params={"url": one.url}, headers=user))[0] == 403
        assert (await call("GET", url + ALL, headers=user))[0] == 200
        assert (await call("DELETE", url + PATH, params={"url": one.url}, headers=root))[0] == 202


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"host": "rebound.example:8000"},
        {"x-forwarded-for": "10.1.1.1"},
        {"forwarded": "for=10.1.1.1"},
        {"x-real-ip": "10.1.1.1"},
    ],
)
async def test_without_keys_neither_browsers_nor_what_comes_through_a_proxy_may(headers: dict[str, str]) -> None:
    async with front() as (url, _, two):
        for method in ("POST", "DELETE"):
            status, said = await call(method, url + PATH, json={"url": two.url}, headers=headers)
            assert (status, said["error"]["code"]) == (403, "forbidden")
        assert not two.probes


async def test_without_keys_a_simple_request_of_a_page_is_refused() -> None:
    async with front() as (url, _, two):
        body = f'{{"url": "{two.url}"}}'
        assert (await call("POST", url + PATH, data=body, headers={"content-type": "text/plain"}))[0] == 400


async def test_without_keys_the_networks_are_a_setting() -> None:
    async with front({"admin_from": ["10.0.0.0/8"]}) as (url, _, two):
        status, said = await call("POST", url + PATH, json={"url": two.url})
        assert (status, "admin_from" in said["error"]["message"]) == (403, True)
    async with front({"admin_from": []}) as (url, _, two):
        assert (await call("POST", url + PATH, json={"url": two.url}))[0] == 403
