from __future__ import annotations

import re

import httpx

from foreserve import App
from tests.gateway.house import serving
from tests.gateway.scripted import ScriptedLLM
from tests.gateway.test_openai import chat


def test_health(client: httpx.Client):
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready", "services": {"chat": {"ready": True}}}


def test_not_ready_without_a_replica():
    app = App(chat=ScriptedLLM(), state={"history": False})
    with serving(app, start=False) as house, httpx.Client(base_url=house.url) as client:
        assert client.get("/health/live").status_code == 200
        reply = client.get("/health/ready")
        assert reply.status_code == 503
        assert reply.json()["services"]["chat"]["reasons"]
        reply = chat(client, "say a")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
        assert reply.headers["retry-after"] == "1"


def test_status_counts_outcomes(client: httpx.Client):
    before = client.get("/v1/foreserve/status").json()
    chat(client, "say a", n=2)
    after = client.get("/v1/foreserve/status").json()
    for part, grown in (("requests", 1), ("children", 2)):
        assert after["outcomes"][part]["done"] - before["outcomes"][part]["done"] == grown
    assert after["services"][0]["replicas"][0]["state"] == "ready"


def test_pages_load_nothing_from_elsewhere(client: httpx.Client):
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert not re.search(r"https?://|src=|@import", page.text)
