from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from foreserve import App
from tests.gateway.house import House, serving
from tests.gateway.scripted import ScriptedLLM, seen


def body(script: str, **words: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": script}], **words}


def chat(client: httpx.Client, script: str, **words: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json=body(script, **words))


def events(reply: httpx.Response) -> list[Any]:
    assert reply.headers["content-type"].startswith("text/event-stream")
    parts = reply.text.split("\n\n")
    assert parts.pop() == ""
    datas = [part.removeprefix("data: ") for part in parts]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def test_a_chat_answer(client: httpx.Client):
    reply = chat(client, "say Hel|say lo")
    assert reply.status_code == 200
    assert reply.headers["x-request-id"] in reply.json()["id"]
    choice = reply.json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert choice["finish_reason"] == "stop"
    usage = reply.json()["usage"]
    assert (usage["completion_tokens"], usage["total_tokens"]) == (5, usage["prompt_tokens"] + 5)


def test_length_is_told(client: httpx.Client):
    assert chat(client, "say Hel|length").json()["choices"][0]["finish_reason"] == "length"


def test_a_streamed_chat_answer(client: httpx.Client):
    got = events(chat(client, "say Hel|wait 0.02|say lo", stream=True, stream_options={"include_usage": True}))
    assert got.pop() == "[DONE]"
    last = got.pop()
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5
    assert all(event["usage"] is None for event in got)
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [e["choices"][0]["delta"].get("content", "") for e in got[1:]] == ["Hel", "lo", ""]
    assert [e["choices"][0]["finish_reason"] for e in got] == [None, None, None, "stop"]
    assert len({event["id"] for event in got}) == 1


def test_usage_comes_only_when_asked_for(client: httpx.Client):
    assert all("usage" not in event for event in events(chat(client, "say a", stream=True))[:-1])


def test_a_stop_string_is_cut_and_counted(client: httpx.Client):
    reply = chat(client, "say one ST|say OP two", stop=["STOP"]).json()
    assert reply["choices"][0]["message"]["content"] == "one "
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] == len("one STOP two")


def test_n_choices_are_children_of_one_request(house: House, client: httpx.Client):
    before = house.ask(lambda running: (running.ledger.entered[False], running.ledger.entered[True]))
    reply = chat(client, "say x", n=3, seed=5).json()
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2]
    assert [c["message"]["content"] for c in reply["choices"]] == ["x"] * 3
    assert reply["usage"]["completion_tokens"] == 3
    assert [asked.seed for asked in seen[-3:]] == [5, 6, 7]
    after = house.ask(lambda running: (running.ledger.entered[False], running.ledger.entered[True]))
    assert (after[0] - before[0], after[1] - before[1]) == (1, 3)


def test_n_choices_streamed(client: httpx.Client):
    got = events(chat(client, "say a|wait 0.02|say b", n=2, stream=True))
    texts = {0: "", 1: ""}
    for event in got[:-1]:
        choice = event["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: "ab", 1: "ab"}
    assert got[-1] == "[DONE]"


def test_logprobs(client: httpx.Client):
    content = chat(client, "say hé", logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == [-0.5] * 3
    assert content[0] == {"token": "h", "logprob": -0.5, "bytes": [104], "top_logprobs": []}
    assert content[1]["bytes"] is None
    content = chat(client, "say h", logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    rivals = [(rival["token"], rival["logprob"]) for rival in content[0]["top_logprobs"]]
    assert rivals == [("h", -0.5), ("i", -1.5)]


def test_sampling_reaches_the_engine(client: httpx.Client):
    chat(client, "say a", temperature=0, top_p=0.5, seed=9, max_completion_tokens=7, ignore_eos=True,
         presence_penalty=1, frequency_penalty=-1, response_format={"type": "json_object"})  # fmt: skip
    asked = seen[-1]
    assert (asked.temperature, asked.top_p, asked.seed, asked.max_tokens) == (0.0, 0.5, 9, 7)
    assert (asked.presence_penalty, asked.frequency_penalty, asked.ignore_eos) == (1.0, -1.0, True)
    assert json.loads(asked.json_schema or "") == {"type": "object"}
    assert asked.stop_tokens == ()


def test_an_error_before_the_first_event_is_a_status(client: httpx.Client):
    reply = chat(client, "fail out of paper", stream=True)
    assert reply.status_code == 500
    assert reply.json()["error"]["message"] == "out of paper"
    assert reply.json()["error"]["code"] == "engine_error"


def test_an_error_after_it_is_an_event_without_done(client: httpx.Client):
    got = events(chat(client, "say a|wait 0.02|fail out of paper", stream=True))
    assert got[-1]["error"]["code"] == "engine_error"
    assert got[1]["choices"][0]["delta"]["content"] == "a"


def test_one_failing_choice_fails_all(client: httpx.Client):
    assert chat(client, "fail", n=3).status_code == 500


def test_a_passed_deadline(client: httpx.Client):
    reply = client.post("/v1/chat/completions", json=body("hang"), headers={"x-slo-ms": "50"})
    assert reply.status_code == 504
    assert reply.headers["x-should-retry"] == "false"
    assert reply.json()["error"]["code"] == "deadline_exceeded"
    in_body = client.post("/v1/chat/completions", json=body("hang", stream=True, foreserve={"slo_ms": 50}))
    assert in_body.status_code == 504


@pytest.mark.parametrize(
    ("words", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_request"),
        ({"temperature": 2.5}, "temperature", "invalid_request"),
        ({"max_tokens": 0}, "max_tokens", "invalid_request"),
        ({"max_tokens": 10**9}, "max_tokens", "context_length_exceeded"),
        ({"max_completion_tokens": 10**9}, "max_completion_tokens", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": ""}] * 50_000}, "messages", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x" * 10**6}]}, "messages", "context_length_exceeded"),
        ({"tools": [{"type": "function"}]}, "tools", "invalid_request"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_request"),
        ({"stop": [""]}, "stop[0]", "invalid_request"),
        ({"stream_options": {}}, "stream_options", "invalid_request"),
        ({"foreserve": {"slo": 3}}, "foreserve.slo", "invalid_request"),
        ({"seed": 2**70}, "seed", "invalid_request"),
    ],
)
def test_what_is_wrong_is_named(client: httpx.Client, words: dict[str, Any], param: str, code: str):
    reply = chat(client, "say a", **words)
    assert reply.status_code == 400
    assert (reply.json()["error"]["param"], reply.json()["error"]["code"]) == (param, code)


def test_values_that_ask_for_nothing_are_taken(client: httpx.Client):
    parts = [{"type": "text", "text": "say "}, {"type": "text", "text": "ok"}]
    words = {
        "n": 1, "logit_bias": {}, "user": "me", "metadata": {"a": "b"}, "store": False, "parallel_tool_calls": True,
        "service_tier": "auto", "presence_penalty": 0, "response_format": {"type": "text"}, "tools": [],
        "tool_choice": "auto", "stop": None, "functions": None, "modalities": ["text"],
        "messages": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}],
    }  # fmt: skip
    reply = chat(client, "", **words)
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == "ok"


def test_a_model_that_is_not_there(client: httpx.Client):
    reply = chat(client, "say a", model="chatt")
    assert reply.status_code == 404
    assert "did you mean 'chat'" in reply.json()["error"]["message"].lower()


def test_a_lacking_feature_is_refused():
    app = App(chat=ScriptedLLM(features=()), state={"history": False})
    with serving(app) as house, httpx.Client(base_url=house.url) as client:
        asked = {"seed": 1, "logprobs": True, "presence_penalty": 1, "response_format": {"type": "json_object"}}
        for name, value in asked.items():
            reply = chat(client, "say a", **{name: value})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, name)


def test_text_completions(client: httpx.Client):
    prompt = "user: say Hi\nassistant: "
    reply = client.post("/v1/completions", json={"model": "chat", "prompt": prompt}).json()
    assert reply["object"] == "text_completion"
    assert reply["choices"][0]["text"] == "Hi"
    assert seen[-1].max_tokens == 16
    ids = list(prompt.encode())
    for several in ([prompt, prompt], [ids, ids]):
        reply = client.post("/v1/completions", json={"model": "chat", "prompt": several, "n": 2}).json()
        assert [choice["text"] for choice in reply["choices"]] == ["Hi"] * 4
        assert reply["usage"]["prompt_tokens"] == 2 * len(ids)
    one = client.post("/v1/completions", json={"model": "chat", "prompt": ids, "logprobs": 0}).json()
    assert one["choices"][0]["logprobs"]["text_offset"] == [0, 1]
    one = client.post("/v1/completions", json={"model": "chat", "prompt": ids, "logprobs": 1}).json()
    assert one["choices"][0]["logprobs"]["top_logprobs"] == [{"H": -0.5}, {"i": -0.5}]
    stream = client.post("/v1/completions", json={"model": "chat", "prompt": prompt, "stream": True})
    assert "".join(event["choices"][0]["text"] for event in events(stream)[:-1]) == "Hi"


@pytest.mark.parametrize(
    ("words", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [70000]}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": ["a"] * 100, "n": 2}, "n"),
        ({}, "prompt"),
    ],
)
def test_wrong_completions(client: httpx.Client, words: dict[str, Any], param: str):
    reply = client.post("/v1/completions", json={"model": "chat", **words})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_models(client: httpx.Client):
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["chat"]
    assert client.get("/v1/models/chat").json() == listed[0]
    assert client.get("/v1/models/other").status_code == 404


def test_refused_when_the_queue_is_full():
    app = App(chat=ScriptedLLM(slots=1, queue={"max_waiting": 1}), state={"history": False})
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=20) as client:

        def until(running: int, waiting: int) -> None:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                status = house.ask(lambda running: running.services["chat"].status())
                if (status.running, status.waiting) == (running, waiting):
                    return
            raise AssertionError(status)

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(chat, client, "wait 1|say a")
            until(running=1, waiting=0)
            second = pool.submit(chat, client, "say b")
            until(running=1, waiting=1)
            third = chat(client, "say c")
            assert (first.result().status_code, second.result().status_code) == (200, 200)
    assert third.status_code == 429
    assert int(third.headers["retry-after"]) >= 1
    assert third.json()["error"]["code"] == "shed"
