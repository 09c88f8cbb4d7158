"""Services that may have no replica, over HTTP: the first request waits for a start, whatever it asks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from foreserve import App, function
from foreserve.services.llm import LLM
from tests.gateway.house import House, serving

ENGINE = {"output_tokens": [3, 6], "decode_s": 0.001, "start_s": 0.3}


def simulated(**words: Any) -> LLM:
    return LLM("simulated", **{"replicas": [0, 2], "launcher": "inline", "engine_options": ENGINE, **words})


@function(launcher="inline", replicas=[0, 1])
def count(to: int) -> Iterator[int]:
    yield from range(to)


@pytest.fixture
def house() -> Iterator[House]:
    with serving(App(chat=simulated(), count=count, state={"history": False})) as house:
        yield house


@pytest.fixture
def client(house: House) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=house.url, timeout=20) as client:
        yield client


def body(**words: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": "hi"}], **words}


def replicas(client: httpx.Client, service: int = 0) -> list[str]:
    status = client.get("/v1/foreserve/status").json()["services"][service]
    return [replica["state"] for replica in status["replicas"]]


def test_it_is_ready_without_a_replica_and_lists_its_models(client: httpx.Client):
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["services"]["chat"]) == (200, {"ready": True, "on_demand": True})
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["chat"]
    assert client.get("/v1/models/chat").status_code == 200
    assert replicas(client) == [], "nobody has asked for one"
    assert 'foreserve_replicas{service="chat",state="ready"} 0.0' in client.get("/metrics").text


def test_the_first_request_waits_for_a_start(client: httpx.Client):
    reply = client.post("/v1/chat/completions", json=body())
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["completion_tokens"] > 0
    assert replicas(client) == ["ready"]
    metrics = client.get("/metrics").text
    assert 'foreserve_replica_start_seconds_count{service="chat"} 1.0' in metrics
    assert 'foreserve_replicas_wanted{service="chat"} 1.0' in metrics
    assert 'foreserve_scaling_wanted{service="chat"} 1.0' in metrics
    assert 'foreserve_scaling_granted{service="chat"} 1.0' in metrics
    assert client.get("/v1/models/chat").json()["max_model_len"] == 8192


def test_many_of_all_kinds_wait_for_the_same_start(client: httpx.Client):
    def streamed() -> str:
        with client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as reply:
            return "".join(reply.iter_text())

    def several() -> int:
        return len(client.post("/v1/chat/completions", json=body(n=3)).json()["choices"])

    def text() -> int:
        return client.post("/v1/completions", json={"model": "chat", "prompt": ["a", "b"]}).status_code

    with ThreadPoolExecutor(12) as pool:
        streams = [pool.submit(streamed) for _ in range(4)]
        groups, texts = [pool.submit(several) for _ in range(4)], [pool.submit(text) for _ in range(4)]
        assert all(stream.result().endswith("data: [DONE]\n\n") for stream in streams)
        assert [group.result() for group in groups] == [3] * 4
        assert [one.result() for one in texts] == [200] * 4
    assert len(replicas(client)) <= 2


def test_what_cannot_be_asked_is_told_once_that_is_known(client: httpx.Client):
    reply = client.post("/v1/chat/completions", json=body(max_tokens=100_000))
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_function_starts_for_its_first_call_too(client: httpx.Client):
    assert client.post("/v1/functions/count", json={"to": 3}).json() == {"result": [0, 1, 2]}
    assert replicas(client, 1) == ["ready"]
    assert replicas(client, 0) == []


def test_to_none_and_back(house: House, client: httpx.Client):
    assert client.post("/v1/chat/completions", json=body()).status_code == 200
    house.ask(lambda running: running.services["chat"].replicas.scale(0))

    until = time.monotonic() + 10
    while replicas(client):
        assert time.monotonic() < until
    assert client.get("/health/ready").json()["services"]["chat"] == {"ready": True, "on_demand": True}
    with client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as reply:
        events = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
    assert events[-1]["choices"][0]["finish_reason"]
    assert replicas(client) == ["ready"]


def test_the_policy_lets_an_idle_service_go_to_none_and_the_next_request_wakes_it():
    kind = simulated(scaling={"idle_s": 0.5, "every_s": 0.1, "window_s": 1.0})
    with (
        serving(App(chat=kind, state={"history": False})) as house,
        httpx.Client(base_url=house.url, timeout=20) as client,
    ):
        for generation in (1, 2):
            assert client.post("/v1/chat/completions", json=body()).status_code == 200
            names = house.ask(lambda running: [one.name for one in running.services["chat"].replicas.all])
            assert f"chat/0.{generation}" in names
            until = time.monotonic() + 15
            while replicas(client):
                assert time.monotonic() < until
                time.sleep(0.05)


def test_a_start_that_fails_is_told(tmp_path: Any):
    broken = simulated(engine_options={**ENGINE, "batching": "static", "nonsense": 1}, policy="fcfs")
    with (
        serving(App(chat=broken, state={"history": False})) as house,
        httpx.Client(base_url=house.url, timeout=20) as client,
    ):
        reply = client.post("/v1/chat/completions", json=body())
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
        assert "nonsense" in reply.json()["error"]["message"]
        ready = client.get("/health/ready")
        assert ready.status_code == 503, "no balancer should send more while it fails"
        assert "nonsense" in ready.text
        assert house.ask(lambda running: running.ledger.ended("failed")) == 1, "it is counted"


def test_a_deadline_ends_the_wait_for_the_first_start():
    with (
        serving(App(chat=simulated(engine_options={**ENGINE, "start_s": 60.0}), state={"history": False})) as house,
        httpx.Client(base_url=house.url, timeout=20) as client,
    ):
        reply = client.post("/v1/chat/completions", json=body(), headers={"x-slo-ms": "200"})
        assert reply.status_code == 504
        assert house.ask(lambda running: running.ledger.ended("expired")) == 1


def test_stopping_ends_who_waits_for_the_first_start():
    with (
        serving(App(chat=simulated(engine_options={**ENGINE, "start_s": 60.0}), state={"history": False})) as house,
        httpx.Client(base_url=house.url, timeout=20) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(client.post, "/v1/chat/completions", json=body())
        while house.ask(lambda running: running.services["chat"].dispatcher.view().waiting) == 0:
            pass
        house.ask(lambda running: running._refuse_all())
        assert asked.result().status_code == 503


@pytest.mark.model
def test_a_real_model_starts_for_its_first_request():
    words = {"replicas": [0, 2], "threads": 1, "kv_cache_gb": 0.25}
    with (
        serving(App(chat=LLM("smollm2", **words), state={"history": False})) as house,
        httpx.Client(base_url=house.url, timeout=60) as client,
    ):
        with client.stream("POST", "/v1/chat/completions", json=body(stream=True, max_tokens=8)) as reply:
            assert "".join(reply.iter_text()).endswith("data: [DONE]\n\n")
        assert len(client.post("/v1/chat/completions", json=body(n=2, max_tokens=4)).json()["choices"]) == 2
        assert replicas(client) == ["ready"]
