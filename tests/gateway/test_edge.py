from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from foreserve import App
from tests.gateway.house import House, serving
from tests.gateway.scripted import ScriptedLLM
from tests.gateway.test_openai import body


@pytest.fixture(scope="module")
def guarded() -> Iterator[House]:
    """A server that needs a key and takes small bodies only."""
    server = {
        "api_keys": [{"key": "secret", "tenant": "acme", "max_utility": 2.0}],
        "max_body_bytes": 4096,
    }
    with serving(App(chat=ScriptedLLM(), server=server, state={"history": False})) as house:
        yield house


@pytest.fixture
def client(guarded: House) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.url, headers={"authorization": "Bearer secret"}, timeout=20) as client:
        yield client


def test_every_reply_has_its_own_id(client: httpx.Client):
    ids = [client.get(path).headers["x-request-id"] for path in ("/health/live", "/nope", "/v1/models")]
    assert len(set(ids)) == 3


def test_a_trace_is_kept(client: httpx.Client, caplog: pytest.LogCaptureFixture):
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with caplog.at_level(logging.DEBUG, "foreserve.gateway.edge"):
        reply = client.get("/v1/models", headers={"traceparent": trace})
        # The line is written when all is done, which is after the reply was sent.
        deadline = time.monotonic() + 10
        while reply.headers["x-request-id"] not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    assert reply.headers["traceparent"] == trace
    assert "trace=4bf92f3577b34da6a3ce929d0e0e4736" in caplog.text
    assert reply.headers["x-request-id"] in caplog.text
    assert "traceparent" not in client.get("/v1/models", headers={"traceparent": "00-0-0-00"}).headers


def test_everything_but_health_needs_the_key(guarded: House):
    with httpx.Client(base_url=guarded.url) as stranger:
        for path in (
            "/",
            "/docs",
            "/metrics",
            "/v1/models",
            "/v1/foreserve/status",
            "/v1/foreserve/runtime",
            "/nope",
            "/openapi.json",
        ):
            reply = stranger.get(path)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
            assert reply.headers["www-authenticate"].startswith("Bearer")
        for path in ("/health/live", "/health/ready"):
            assert stranger.get(path).status_code == 200
        assert stranger.get("/", auth=("me", "secret")).status_code == 200


def test_terms_of_the_key(client: httpx.Client):
    ok = client.post("/v1/chat/completions", json=body("say a", foreserve={"utility": 2}))
    assert ok.status_code == 200
    greedy = client.post("/v1/chat/completions", json=body("say a"), headers={"x-utility": "3"})
    assert (greedy.status_code, greedy.json()["error"]["param"]) == (400, "x-utility")


def test_a_body_that_says_it_is_too_large(client: httpx.Client):
    reply = client.post("/v1/chat/completions", content=b"x" * 5_000_000)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    assert reply.headers["connection"] == "close"


def test_a_body_that_turns_out_too_large(client: httpx.Client):
    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    reply = client.post("/v1/chat/completions", content=parts())
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    assert client.get("/v1/models").status_code == 200


def test_who_waits_for_a_go_ahead_is_told_at_once(guarded: House):
    port = int(guarded.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:
        wire.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n"
            b"Expect: 100-continue\r\nContent-Length: 50000000\r\n\r\n"
        )
        assert wire.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_defect_is_a_500_that_names_the_request(
    client: httpx.Client, guarded: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def broken(self: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(type(guarded.running.services["chat"]), "status", broken)
    reply = client.get("/v1/foreserve/status")
    assert reply.status_code == 500
    assert reply.headers["x-request-id"] in reply.json()["error"]["message"]
    assert "a defect" not in reply.text
    assert "ZeroDivisionError: a defect" in caplog.text


def test_no_more_than_so_many_requests_are_open():
    app = App(chat=ScriptedLLM(), server={"max_connections": 1}, state={"history": False})
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=20) as client:
        for _ in range(2):
            with client.stream("POST", "/v1/chat/completions", json=body("say a|hang", stream=True)) as first:
                assert first.status_code == 200
                reply = client.get("/v1/models")
                assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
                assert int(reply.headers["retry-after"]) >= 1
                assert client.get("/health/live").status_code == 200
            deadline = time.monotonic() + 10
            while (status := client.get("/v1/models").status_code) == 503 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert status == 200


def test_a_body_that_does_not_come_is_not_waited_for():
    app = App(chat=ScriptedLLM(), server={"body_s": 0.2}, state={"history": False})
    with serving(app) as house:
        port = int(house.url.rpartition(":")[2])
        for path in (b"/v1/chat/completions", b"/v1/functions/x"):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:
                wire.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
                got = b""
                while part := wire.recv(65536):
                    got += part
            assert got.startswith(b"HTTP/1.1 408")
            assert b"request_timeout" in got
        # The limit is on the body alone: an answer may take longer.
        with httpx.Client(base_url=house.url, timeout=20) as client:
            for stream in (True, False):
                slow = body("say a|wait 0.5|say b", stream=stream)
                reply = client.post("/v1/chat/completions", json=slow)
                assert reply.status_code == 200
                assert "error" not in reply.text
