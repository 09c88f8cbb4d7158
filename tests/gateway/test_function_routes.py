"""Functions at paths of their own: bodies of every kind, replies of every kind, and what is wrong told in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from pydantic import BaseModel

from foreserve import App, File, function
from foreserve.gateway import admin, functions, inference, metrics, openai, servers, trace, upstream
from foreserve.gateway.function_bodies import MOST_FIELDS, MOST_FILES
from foreserve.settings_services import OUR_PATHS
from tests.gateway.house import House, serving


class Item(msgspec.Struct):
    name: str
    price: float = 0.0


class Order(BaseModel):
    size: int


@function(launcher="inline", route="/total")
def total(items: list[Item], tax: float = 0.0, note: str | None = None) -> dict[str, Any]:
    return {"total": sum(item.price for item in items) * (1 + tax), "note": note}


@function(launcher="inline", route="/size")
def size(order: Order) -> int:
    return order.size + 1


@function(launcher="inline", route="/raw/turned")
def turned(data: bytes) -> bytes:
    return data[::-1]


@function(launcher="inline", route="/upload")
def upload(image: File, more: list[File], times: int = 1, tags: list[str] | None = None) -> dict[str, Any]:
    return {
        "name": image.name,
        "type": image.content_type,
        "bytes": len(image.data) * times,
        "more": [file.name for file in more],
        "tags": tags,
    }


@function(launcher="inline", route="/count")
def count(to: int) -> Iterator[dict[str, int]]:
    for n in range(to):
        yield {"n": n}


@function(launcher="inline", route="/batched", batch=4)
def batched(word: list[str]) -> list[str]:
    return [each.upper() for each in word]


@function(launcher="inline", route="/made")
class Made:
    """A class that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, step: int = 1) -> int:
        self.calls += step
        return self.calls


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    from foreserve.services.function import Function

    named = Function("tests.gateway.test_function_routes:turned", launcher="inline", route="/named")
    app = App(
        total=total, size=size, turned=turned, upload=upload, count=count, batched=batched, made=Made, named=named,
        server={"api_keys": [{"key": "k"}], "max_body_bytes": 3_000_000}, state={"history": False},
    )  # fmt: skip
    with serving(app) as house:
        yield house


@pytest.fixture
def client(house: House) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=house.url, timeout=20, headers={"authorization": "Bearer k"}) as client:
        yield client


def error(reply: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = reply.json()["error"]
    return found


def test_json_is_converted_by_annotation_and_the_result_is_the_reply(client: httpx.Client):
    reply = client.post("/total", json={"items": [{"name": "a", "price": 2}, {"name": "b", "price": 4}], "tax": 0.5})
    assert reply.json() == {"total": 9.0, "note": None}
    assert client.post("/size", json={"order": {"size": "4"}}).json() == 5
    assert client.post("/batched", json={"word": "abc"}).json() == "ABC"
    assert client.post("/v1/functions/size", json={"order": {"size": 4}}).json() == {"result": 5}


def test_a_class_is_made_once_and_keeps_what_it_has(client: httpx.Client):
    first = client.post("/made", content=b"").json()
    assert client.post("/made", json={"step": 3}).json() == first + 3


def test_raw_bytes_of_any_type_go_in_and_come_out(client: httpx.Client):
    for path in ("/raw/turned", "/named"):
        reply = client.post(path, content=b"\x00abc", headers={"content-type": "image/png"})
        assert (reply.content, reply.headers["content-type"]) == (b"cba\x00", "application/octet-stream")
        assert (
            client.post(path, content=b'{"a": 1}', headers={"content-type": "application/json"}).content == b'}1 :"a"{'
        )
    assert client.post("/raw/turned", files={"data": ("a.bin", b"xyz")}).content == b"zyx"


def test_files_and_fields_of_a_form(client: httpx.Client):
    files = [("image", ("cat.png", b"12345", "image/png")), ("more", ("a", b"")), ("more", ("b", b"x"))]
    reply = client.post("/upload", files=files, data={"times": "2", "tags": ["x", "y"]})
    told = {"name": "cat.png", "type": "image/png", "bytes": 10, "more": ["a", "b"], "tags": ["x", "y"]}
    assert reply.json() == told
    big = client.post("/upload", files=[("image", ("big", bytes(2_000_000))), ("more", ("a", b""))], data={"tags": "z"})
    assert (big.json()["bytes"], big.json()["tags"]) == (2_000_000, ["z"])


def test_an_urlencoded_form(client: httpx.Client):
    assert client.post("/made", data={"step": "0"}).status_code == 200
    assert "`step`: expected int" in error(client.post("/made", data={"step": "much"}))["message"]


def test_a_generator_streams_unless_the_client_asks_otherwise(client: httpx.Client):
    events = 'data: {"n":0}\n\ndata: {"n":1}\n\ndata: [DONE]\n\n'
    reply = client.post("/count", json={"to": 2})
    assert (reply.text, reply.headers["content-type"]) == (events, "text/event-stream; charset=utf-8")
    whole = [{"n": 0}, {"n": 1}]
    assert client.post("/count", json={"to": 2}, params={"stream": "false"}).json() == whole
    assert client.post("/count", json={"to": 2}, headers={"accept": "application/json"}).json() == whole
    assert client.post("/size", json={"order": {"size": 1}}, headers={"accept": "text/event-stream"}).text == (
        "data: 2\n\ndata: [DONE]\n\n"
    )


@pytest.mark.parametrize(
    ("path", "words", "param", "said"),
    [
        ("/total", {"json": {"items": [{"name": 1}]}}, "items[0].name", "expected str, got int; `items` takes list["),
        ("/total", {"json": {"items": [], "tax": "much"}}, "tax", "`tax`: expected float, got str"),
        ("/total", {"json": {}}, None, "missing a required argument: 'items'"),
        ("/total", {"json": [1]}, None, "expected object"),
        (
            "/total",
            {"content": b' {"items": []}', "headers": {"content-type": "application/x-www-form-urlencoded"}},
            None,
            "send content-type: application/json",
        ),
        ("/total", {"content": b"{"}, None, "not valid JSON"),
        ("/size", {"json": {"order": {}}}, "order", "size: Field required"),
        ("/batched", {"json": {"word": ["a"]}}, "word", "`word`: expected str, got array"),
        ("/upload", {"json": {"image": "x", "more": []}}, "image", "expected object"),
        ("/upload", {"files": [("image", ("a", b"")), ("image", ("b", b""))]}, None, "missing a required argument"),
        ("/total", {"files": {"items": ("a", b"")}}, "items", "got a file"),
        ("/upload", {"content": b"-", "headers": {"content-type": "multipart/form-data"}}, None, "form cannot be read"),
        ("/upload", {"files": [("more", ("a", b""))] * (MOST_FILES + 1)}, None, "Too many files"),
        ("/made", {"data": {f"a{n}": "1" for n in range(MOST_FIELDS + 1)}}, None, "Too many fields"),
        ("/count", {"json": {"to": 1}, "params": {"stream": "yes"}}, "stream", "valid: true, false"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_a_400_that_names_it(
    client: httpx.Client, path: str, words: Any, param: str | None, said: str
):
    reply = client.post(path, **words)
    assert reply.status_code == 400, reply.text
    assert said in error(reply)["message"]
    assert error(reply)["param"] == param


def test_keys_sizes_and_terms_hold_here_too(client: httpx.Client):
    assert client.post("/total", headers={"authorization": "Bearer no"}).status_code == 401
    assert client.post("/raw/turned", content=bytes(3_000_001)).status_code == 413
    reply = client.post("/size", json={"order": {"size": 1}}, headers={"x-slo-ms": "none"})
    assert (reply.status_code, error(reply)["param"]) == (400, "x-slo-ms")
    assert client.post("/size", json={"order": {"size": 1}}).headers["x-request-id"].startswith("req-")
    assert client.get("/size").status_code == 405


def test_the_page_tells_the_parameters(client: httpx.Client):
    page = client.get("/openapi.json").json()
    body = page["paths"]["/total"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["items"]
    assert body["properties"]["items"] == {"type": "array", "items": {"$ref": "#/components/schemas/total.Item"}}
    assert page["components"]["schemas"]["total.Item"]["properties"]["price"] == {"type": "number", "default": 0.0}
    upload = page["paths"]["/upload"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert upload["properties"]["image"] == {"type": "string", "format": "binary"}
    assert "application/octet-stream" in page["paths"]["/raw/turned"]["post"]["requestBody"]["content"]


def test_every_path_of_ours_is_kept_from_routes():
    parts = (admin, functions, inference, metrics, openai, servers, trace, upstream)
    paths = [route.path for part in parts for route in part.router.routes]  # type: ignore[attr-defined]
    assert {path.split("/")[1] for path in paths} - {""} <= set(OUR_PATHS)
