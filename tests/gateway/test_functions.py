from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from foreserve import App, function
from tests.gateway.house import House, serving


@function(launcher="inline")
def add(a: int, b: int = 1) -> int:
    return a + b


@function(launcher="inline")
def count(to: int) -> Iterator[int]:
    yield from range(to)


@function(launcher="inline")
async def later(word: str) -> dict[str, str]:
    return {"word": word}


@function(launcher="inline")
def fails() -> None:
    raise RuntimeError("no paper")


@function(launcher="inline")
def nothing() -> None:
    return None


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    app = App(add=add, count=count, later=later, fails=fails, nothing=nothing, state={"history": False})
    with serving(app) as house:
        yield house


def call(client: httpx.Client, name: str, args: Any, **words: Any) -> httpx.Response:
    return client.post(f"/v1/functions/{name}", json=args, **words)


def test_results(client: httpx.Client):
    assert call(client, "add", {"a": 2, "b": 3}).json() == {"result": 5}
    assert call(client, "later", {"word": "x"}).json() == {"result": {"word": "x"}}
    assert call(client, "nothing", {}).json() == {"result": None}
    assert call(client, "count", {"to": 3}).json() == {"result": [0, 1, 2]}
    assert call(client, "count", {"to": 0}).json() == {"result": []}


def test_no_body_brings_no_arguments(client: httpx.Client):
    assert client.post("/v1/functions/nothing").json() == {"result": None}
    assert "missing a required argument: 'a'" in client.post("/v1/functions/add").json()["error"]["message"]


@pytest.mark.parametrize("words", [{"headers": {"accept": "text/event-stream"}}, {"params": {"stream": "true"}}])
def test_items_as_events(client: httpx.Client, words: dict[str, Any]):
    parts = call(client, "count", {"to": 3}, **words).text.split("\n\n")
    assert parts == ["data: 0", "data: 1", "data: 2", "data: [DONE]", ""]


def test_what_the_code_raises_is_a_500(client: httpx.Client):
    reply = call(client, "fails", {})
    assert (reply.status_code, reply.json()["error"]["message"]) == (500, "RuntimeError: no paper")


@pytest.mark.parametrize(
    ("name", "raw", "status", "words"),
    [
        ("add", b'{"b": 1}', 400, "wrong arguments"),
        ("add", b'{"a": 1, "c": 1}', 400, "wrong arguments"),
        ("add", b"[1]", 400, "expected object"),
        ("add", b"{", 400, "not valid JSON"),
        ("add", b'{"a": 99999999999999999999999}', 400, "64 bits"),
        ("sub", b"{}", 404, "add, count"),
    ],
)
def test_wrong_calls(client: httpx.Client, name: str, raw: bytes, status: int, words: str):
    reply = client.post(f"/v1/functions/{name}", content=raw)
    assert reply.status_code == status
    assert words in reply.json()["error"]["message"]


def test_a_wrong_word_for_streaming(client: httpx.Client):
    reply = call(client, "count", {"to": 1}, params={"stream": "yes"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "stream")


def test_a_decorated_function_is_still_one():
    assert add(1, b=2) == 3
    assert list(count(2)) == [0, 1]
    assert json.dumps(add.__name__) == '"add"'
