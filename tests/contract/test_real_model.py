"""The packaged model all the way through: client, server, worker process, engine, and back."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from foreserve import LLM, App
from tests.gateway.house import serving

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    app = App(chat=LLM("smollm2", kv_cache_gb=0.25, max_running=4), state={"history": False})
    with serving(app) as house, OpenAI(base_url=f"{house.url}/v1", api_key="-", max_retries=0) as client:
        yield client


ASK = [{"role": "user", "content": "Count from one to ten in words, separated by commas."}]


def test_a_streamed_answer_is_the_whole_one(client: OpenAI):
    words = {"model": "chat", "messages": ASK, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**words)  # type: ignore[call-overload]
    assert whole.usage.prompt_tokens > 20
    stream = client.chat.completions.create(**words, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text
    assert chunks[-1].usage.completion_tokens <= 40
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_stop_string_ends_the_answer_before_it(client: OpenAI):
    reply = client.chat.completions.create(model="chat", messages=ASK, temperature=0, max_tokens=60, stop=[","])  # type: ignore[arg-type]
    assert "," not in (reply.choices[0].message.content or "")


def test_n_and_logprobs(client: OpenAI):
    reply = client.chat.completions.create(
        model="chat",
        messages=ASK,
        temperature=1.0,
        seed=3,
        n=2,
        max_tokens=8,
        logprobs=True,  # type: ignore[arg-type]
    )
    for choice in reply.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content
        assert all(entry.logprob <= 0 for entry in choice.logprobs.content)


def test_json_by_a_schema(client: OpenAI):
    schema = {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    reply = client.chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": "Name a colour as JSON."}],
        response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": schema}},
        max_tokens=40,
    )
    assert json.loads(reply.choices[0].message.content or "")["colour"] in ("red", "blue")


def test_a_prompt_beyond_the_context(client: OpenAI):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "many words " * 9000}])
    assert caught.value.code == "context_length_exceeded"


def test_a_worker_killed_in_the_middle_of_an_answer_is_not_noticed_in_the_text():
    # `exact`, since what is computed anew must be what was computed before.
    app = App(chat=LLM("smollm2", kv_cache_gb=0.1, max_running=2, exact=True), state={"history": False})
    words = {"model": "chat", "messages": ASK, "temperature": 0, "max_tokens": 60}
    with serving(app) as house, OpenAI(base_url=f"{house.url}/v1", api_key="-", max_retries=0) as client:
        whole = client.chat.completions.create(**words)  # type: ignore[call-overload]
        with urllib.request.urlopen(f"{house.url}/v1/foreserve/status") as reply:
            (replica,) = json.loads(reply.read())["services"][0]["replicas"]
        stream = client.chat.completions.create(**words, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
        parts, killed = [], False
        for chunk in stream:
            parts.append(chunk)
            if not killed and sum(bool(part.choices and part.choices[0].delta.content) for part in parts) == 5:
                os.kill(replica["pid"], signal.SIGKILL)
                killed = True
    assert killed
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == (
        whole.choices[0].message.content
    )
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == whole.choices[0].finish_reason
    usage = parts[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
