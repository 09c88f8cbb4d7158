"""What users of the official Python client rely on, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI

from tests.contract.conftest import KEY


@pytest.fixture
async def client(base_url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=20) as client:
        yield client


def user(script: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Do as told."}, {"role": "user", "content": script}]


async def test_chat(client: AsyncOpenAI):
    reply = await client.chat.completions.create(model="chat", messages=user("say Hello"))  # type: ignore[arg-type]
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.content == "Hello"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 5
    assert (reply._request_id or "") in reply.id


async def test_chat_streamed_with_usage(client: AsyncOpenAI):
    stream = await client.chat.completions.create(
        model="chat",
        messages=user("say Hel|wait 0.02|say lo"),  # type: ignore[arg-type]
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


async def test_the_stream_helper(client: AsyncOpenAI):
    async with client.chat.completions.stream(model="chat", messages=user("say Hello")) as stream:  # type: ignore[arg-type]
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello"


async def test_stop_strings(client: AsyncOpenAI):
    reply = await client.chat.completions.create(
        model="chat",
        messages=user("say one <e|say nd> two"),  # type: ignore[arg-type]
        stop=["<end>", "never"],
    )
    assert reply.choices[0].message.content == "one "
    assert reply.choices[0].finish_reason == "stop"


async def test_n_and_seed(client: AsyncOpenAI):
    reply = await client.chat.completions.create(model="chat", messages=user("say x"), n=3, seed=1)  # type: ignore[arg-type]
    assert [(c.index, c.message.content) for c in reply.choices] == [(0, "x"), (1, "x"), (2, "x")]


async def test_logprobs(client: AsyncOpenAI):
    reply = await client.chat.completions.create(
        model="chat",
        messages=user("say ab"),  # type: ignore[arg-type]
        logprobs=True,
        top_logprobs=2,
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [(entry.token, entry.logprob) for entry in logprobs.content] == [("a", -0.5), ("b", -0.5)]
    assert [rival.token for rival in logprobs.content[0].top_logprobs] == ["a", "b"]


async def test_text_completions(client: AsyncOpenAI):
    prompt = "user: say Hi\nassistant: "
    reply = await client.completions.create(model="chat", prompt=[prompt, prompt], logprobs=0)
    assert [choice.text for choice in reply.choices] == ["Hi", "Hi"]
    stream = await client.completions.create(model="chat", prompt=list(prompt.encode()), stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hi"


async def test_models(client: AsyncOpenAI):
    listed = [model.id async for model in client.models.list()]
    assert listed == ["chat", "small", "away"]
    assert (await client.models.retrieve("chat")).id == "chat"


async def test_400_names_the_field(client: AsyncOpenAI):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="chat", messages=[])
    assert (caught.value.param, caught.value.code) == ("messages", "invalid_request")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="chat", messages=user("say a" * 1000))  # type: ignore[arg-type]
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            model="chat",
            messages=user("say a"),  # type: ignore[arg-type]
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    assert caught.value.param == "tools"


async def test_401(base_url: str):
    async with AsyncOpenAI(base_url=base_url, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            await stranger.models.list()
    assert caught.value.code == "invalid_api_key"


async def test_404_names_the_models(client: AsyncOpenAI):
    with pytest.raises(openai.NotFoundError, match="chat"):
        await client.chat.completions.create(model="chart", messages=user("say a"))  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("chart")


async def test_429_says_when_to_come_again(client: AsyncOpenAI):
    async def ask() -> object:
        return await client.chat.completions.create(model="small", messages=user("wait 0.3|say a"))  # type: ignore[arg-type]

    replies = await asyncio.gather(*(ask() for _ in range(6)), return_exceptions=True)
    refused = [reply for reply in replies if isinstance(reply, openai.RateLimitError)]
    assert refused
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
    assert len(refused) + sum(not isinstance(reply, BaseException) for reply in replies) == 6


async def test_429_is_retried_by_the_client(client: AsyncOpenAI):
    patient = client.with_options(max_retries=6)
    asked = [
        patient.chat.completions.create(model="small", messages=user("wait 0.2|say a"))  # type: ignore[arg-type]
        for _ in range(4)
    ]
    replies = await asyncio.gather(*asked)
    assert [reply.choices[0].message.content for reply in replies] == ["a"] * 4


async def test_500_carries_the_engines_words(client: AsyncOpenAI):
    with pytest.raises(openai.InternalServerError, match="out of paper"):
        await client.chat.completions.create(model="chat", messages=user("fail out of paper"))  # type: ignore[arg-type]


async def test_503_when_no_replica_was_ever_ready(client: AsyncOpenAI):
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="away", messages=user("say a"))  # type: ignore[arg-type]
    assert (caught.value.status_code, caught.value.code) == (503, "unavailable")
    assert caught.value.response.headers["retry-after"]


async def test_504_is_not_retried(client: AsyncOpenAI):
    late = client.with_options(max_retries=5)
    with pytest.raises(openai.InternalServerError) as caught:
        await late.chat.completions.create(
            model="chat",
            messages=user("hang"),  # type: ignore[arg-type]
            extra_headers={"x-slo-ms": "100"},
        )
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


async def test_terms_in_the_body(client: AsyncOpenAI):
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(
            model="chat",
            messages=user("hang"),  # type: ignore[arg-type]
            extra_body={"foreserve": {"slo_ms": 100}},
        )
    assert caught.value.status_code == 504


async def test_an_error_within_a_stream_is_raised(client: AsyncOpenAI):
    stream = await client.chat.completions.create(
        model="chat",
        messages=user("say a|wait 0.05|fail out of paper"),  # type: ignore[arg-type]
        stream=True,
    )
    with pytest.raises(openai.APIError, match="out of paper"):
        async for _ in stream:
            pass
