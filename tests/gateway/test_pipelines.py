from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from foreserve.core import OutcomeKind
from tests.gateway.house import House, serving
from tests.gateway.test_openai import events
from tests.services.pipeline_app import app

SCRIPT = {"script": "say a bc\n|wait 0.02|say d"}
CLAIMS = [
    {"claim": "a bc!", "counted": {"letters": 3}, "halves": ["a ", "bc"]},
    {"claim": "d!", "counted": {"letters": 1}, "halves": ["", "d"]},
]


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with serving(app()) as house:
        yield house


@pytest.fixture
def client(house: House) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=house.url, timeout=20) as client:
        yield client


def chat(script: str, **words: Any) -> dict[str, Any]:
    return {"model": "checked", "messages": [{"role": "user", "content": script}], **words}


def test_a_final_result(client: httpx.Client):
    reply = client.post("/v1/pipelines/checked", json=SCRIPT)
    assert reply.json()["result"] == {"answer": "a bc\nd", "claims": CLAIMS}
    assert reply.json()["id"] == reply.headers["x-request-id"]


def test_events_as_they_come(client: httpx.Client):
    got = events(client.post("/v1/pipelines/checked?stream=true", json=SCRIPT))
    assert got.pop() == "[DONE]"
    last = got.pop()
    assert last["event"] == "done"
    assert last["usage"]["output_tokens"] == 13
    assert "".join(e["text"] for e in got if e["event"] == "text" and e["name"] == "answer") == "a bc\nd"
    items = {tuple(e["path"]): e["value"] for e in got if e["event"] == "item" and e["name"] == "claims"}
    assert items == {(0,): CLAIMS[0], (1,): CLAIMS[1]}
    assert {"event": "end", "name": "claims", "path": [], "count": 2} in got


def test_what_is_wrong_is_told_before_anything_is_counted(house: House, client: httpx.Client):
    before = house.ask(lambda running: running.ledger.entered.total())
    missing = client.post("/v1/pipelines/checked", json={})
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "script")
    typed = client.post("/v1/pipelines/checked", json={"script": 5})
    assert typed.json()["error"]["message"] == "`script`: expected `str`, got `int`"
    extra = client.post("/v1/pipelines/checked", json={**SCRIPT, "more": 1})
    assert "takes no `more`; valid: script" in extra.json()["error"]["message"]
    terms = client.post("/v1/pipelines/checked", json={**SCRIPT, "foreserve": {"slo": 1}})
    assert (terms.status_code, terms.json()["error"]["param"]) == (400, "foreserve")
    nowhere = client.post("/v1/pipelines/check", json=SCRIPT)
    assert nowhere.status_code == 404
    assert "Did you mean 'checked'? There are: checked, failing, fed" in nowhere.json()["error"]["message"]
    assert house.ask(lambda running: running.ledger.entered.total()) == before


def test_a_failure_is_an_error_or_the_last_event(client: httpx.Client):
    failed = client.post("/v1/pipelines/failing", json={"text": "a"})
    assert failed.status_code == 500
    assert "as it must" in failed.json()["error"]["message"]
    streamed = client.post("/v1/pipelines/checked?stream=true", json={"script": "say a|fail broken"})
    assert streamed.status_code == 200
    assert "broken" in events(streamed)[-1]["error"]["message"]


def test_a_deadline(client: httpx.Client):
    late = client.post("/v1/pipelines/checked", json={"script": "hang"}, headers={"x-slo-ms": "100"})
    assert late.status_code == 504


def test_a_client_that_goes_takes_its_work_with_it(house: House, client: httpx.Client):
    before = house.ask(lambda running: running.ledger.ended(OutcomeKind.CANCELLED))
    with client.stream("POST", "/v1/pipelines/checked?stream=true", json={"script": "say a|hang"}) as reply:
        next(reply.iter_lines())
    for _ in range(200):
        if house.ask(lambda running: running.ledger.ended(OutcomeKind.CANCELLED)) > before:
            break
        time.sleep(0.02)
    assert house.ask(lambda running: running.ledger.ended(OutcomeKind.CANCELLED)) == before + 1
    assert not house.ask(lambda running: dict(running.ledger.open))


def test_what_there_is(client: httpx.Client):
    checked, failing, _ = client.get("/v1/pipelines").json()["pipelines"]
    assert (checked["name"], checked["inputs"]) == ("checked", {"script": "str"})
    assert checked["outputs"] == {"answer": "Text", "claims": "Stream[dict[str, Any]]"}
    assert checked["services"] == ["chat", "count_letters", "halves"]
    assert client.get("/v1/pipelines/failing").json()["name"] == failing["name"] == "failing"
    assert "foreserve_requests_total" in client.get("/metrics").text


def test_the_timeline_of_a_request(client: httpx.Client):
    request_id = client.post("/v1/pipelines/checked", json=SCRIPT).json()["id"]
    at = f"/v1/pipelines/checked/requests/{request_id}/timeline"
    trace = client.get(at, params={"form": "trace"}).json()
    slices = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert {e["name"] for e in slices} == {
        "answer", "repeat 0", "repeat 1", "count_letters 0", "count_letters 1", "halves 0", "halves 1"
    }  # fmt: skip
    answer = next(e for e in slices if e["name"] == "answer")
    assert answer["dur"] >= 20_000
    assert answer["args"]["service"] == "chat"
    first = next(e for e in slices if e["name"] == "repeat 0")
    assert first["ts"] < answer["ts"] + answer["dur"]
    facts = client.get(at).json()
    assert (facts["id"], facts["pipeline"], facts["left_out"]) == (request_id, "checked", 0)
    told = next(span for span in facts["spans"] if span["stage"] == "answer")
    assert (told["ended"], told["facts"]["service"], told["place"]) == (answer["cat"], "chat", [])
    assert told["took_s"] >= 0.02
    page = client.get(at, headers={"accept": "text/html,*/*;q=0.8"}).text
    assert "count_letters 1" in page
    assert "<script" in page
    assert client.get(at, params={"form": "pdf"}).status_code == 400
    assert client.get("/v1/pipelines/checked/requests/none/timeline").status_code == 404


def test_a_pipeline_as_a_model(client: httpx.Client):
    whole = client.post("/v1/chat/completions", json=chat("say a bc\n|say d")).json()
    assert whole["choices"][0]["message"]["content"] == "a bc\nd"
    assert whole["usage"]["completion_tokens"] == 13
    got = events(client.post("/v1/chat/completions", json=chat("say a|wait 0.02|say b", stream=True)))
    assert got.pop() == "[DONE]"
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in got) == "ab"
    assert got[-1]["choices"][0]["finish_reason"] == "stop"
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert names == ["chat", "checked"]
    assert client.get("/v1/models/checked").json()["id"] == "checked"


def test_what_a_pipeline_cannot_be_asked_as_a_model(client: httpx.Client):
    def said(**words: Any) -> str:
        reply = client.post("/v1/chat/completions", json=chat("say a", **words))
        assert reply.status_code == 400
        return str(reply.json()["error"]["message"])

    assert "`temperature` is set by the stages of pipeline 'checked', not by a request" in said(temperature=0.5)
    assert "gives one answer; `n` must be 1" in said(n=2)
    system = {"model": "checked", "messages": [{"role": "system", "content": "x"}]}
    assert "no user message" in client.post("/v1/chat/completions", json=system).json()["error"]["message"]
    unknown = client.post("/v1/chat/completions", json={**system, "model": "failing"})
    assert unknown.status_code == 404


def test_events_by_what_the_client_accepts(client: httpx.Client):
    got = events(client.post("/v1/pipelines/checked", json=SCRIPT, headers={"accept": "text/event-stream"}))
    assert got[0]["name"] == "answer"
