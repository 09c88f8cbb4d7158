from __future__ import annotations

from pathlib import Path
from time import monotonic as now

import httpx
from prometheus_client.parser import text_string_to_metric_families

from foreserve import App
from tests.gateway.house import serving
from tests.gateway.scripted import ScriptedLLM
from tests.gateway.test_openai import chat


def samples(client: httpx.Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_outcomes_tokens_and_times_are_counted(client: httpx.Client):
    before = samples(client)
    chat(client, "say abc|say STOP|say d", stop="STOP")
    chat(client, "fail")
    after = samples(client)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted({"service": "chat", **labels}.items())))
        return after[key] - before.get(key, 0.0)

    assert grown("foreserve_requests_total", outcome="done", code="") == 1
    assert grown("foreserve_requests_total", outcome="failed", code="engine_error") == 1
    assert grown("foreserve_output_tokens_total") == len("abcSTOP")
    assert grown("foreserve_prompt_tokens_total") > 0
    assert grown("foreserve_ttft_seconds_count") == 1
    assert grown("foreserve_queue_seconds_count") == 2
    assert grown("foreserve_e2e_seconds_count") == 1


def test_the_present_state(client: httpx.Client):
    now = samples(client)
    assert now["foreserve_replicas", (("service", "chat"), ("state", "ready"))] == 1
    assert now["foreserve_queue_waiting", (("service", "chat"),)] == 0
    assert now["foreserve_running", (("service", "chat"),)] == 0


def test_what_scaling_goes_by():
    scaling = {"every_s": 0.05}
    app = App(chat=ScriptedLLM(replicas=(1, 2), scaling=scaling), fixed=ScriptedLLM(), state={"history": False})
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=20) as client:
        for _ in range(8):  # so many tell what one can do
            chat(client, "say abc")
        deadline = now() + 20.0
        while not client.get("/v1/foreserve/status").json()["services"][0]["scaling"]["forecast"]:
            assert now() < deadline
        told = samples(client)
        status = client.get("/v1/foreserve/status").json()["services"][0]["scaling"]
        assert status["decision"]["why"]
        assert "x.scaling?.decision" in client.get("/").text
    for name in ("foreserve_load_forecast", "foreserve_replica_capacity"):
        assert told[name, (("measure", "requests"), ("service", "chat"))] > 0.0
        assert not [key for key in told if key[0] == name and ("service", "fixed") in key[1]]
    assert told["foreserve_scaling_granted", (("service", "chat"),)] >= 1


def test_every_metric_is_documented(client: httpx.Client):
    told = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    families = {family.name for family in text_string_to_metric_families(client.get("/metrics").text)}
    names = {name for name in families if not name.endswith("_created")}
    assert {name for name in names if f"`{name}" not in told} == set()
