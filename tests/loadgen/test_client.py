import asyncio

import pytest
from tests.loadgen.server import serving

from foreserve import clock
from foreserve.errors import ConfigError
from foreserve.loadgen.arrivals import generator
from foreserve.loadgen.client import Client, ClientOptions, base_url, first_model
from foreserve.loadgen.prompts import Prompt
from foreserve.loadgen.records import Ending, Recording


async def ask(url, text, **options):
    """The result of one request."""
    async with Client(ClientOptions(url=url, model="tiny", keep_text=True, **options), generator(0)) as client:
        start = clock.precise()
        recording = Recording(0, 0.0)
        ending = await client.send(client.body(Prompt(prompt=text)), recording, start)
        return recording.result(ending, clock.precise() - start)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("word", ["fine", "split"])
async def test_a_stream_is_measured(endpoint, word):
    async with serving(gap_s=0.02) as fake:
        result = await ask(fake.url, word, endpoint=endpoint)
    assert result.ending is Ending.DONE
    assert result.text == "Grüße an 世界!"
    assert (result.prompt_tokens, result.output_tokens, result.counted) == (3, 8, False)
    assert len(result.output_times) == 4
    assert result.finish_reason == "stop"
    assert result.request_id == "r-1"
    assert 0 <= result.sent < result.sent + 0.02 <= result.first == result.output_times[0]
    assert list(result.output_times) == sorted(result.output_times)
    assert result.ended - result.sent >= 0.08, "four tokens, each 20 ms after the last"
    assert result.output_times[-1] <= result.ended


async def test_tokens_are_counted_when_there_is_no_usage():
    async with serving() as fake:
        result = await ask(fake.url, "no_usage")
    assert (result.ending, result.output_tokens, result.counted) == (Ending.DONE, 4, True)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_in_one_piece_has_no_ttft(stream):
    async with serving() as fake:
        result = await ask(fake.url, "whole", stream=stream)
    assert (result.ending, result.streamed, result.first) == (Ending.DONE, False, None)
    assert (result.output_tokens, result.counted, result.text) == (7, False, "hello there")


@pytest.mark.parametrize(
    ("text", "ending", "status", "says"),
    [
        ("status:400", Ending.HTTP_ERROR, 400, "as you asked"),
        ("status:500", Ending.HTTP_ERROR, 500, "as you asked"),
        ("status:429", Ending.REFUSED, 429, "as you asked"),
        ("status:503", Ending.REFUSED, 503, "as you asked"),
        ("error_event", Ending.STREAM_ERROR, 200, "engine died"),
        ("rubbish", Ending.STREAM_ERROR, 200, "no json"),
        ("cut", Ending.CUT, 200, "without `[DONE]`"),
        ("drop", Ending.CONNECTION, 200, ""),
        ("hang", Ending.TIMEOUT, 200, "no complete answer within 0.2 s"),
    ],
)
async def test_every_fault_has_its_ending(text, ending, status, says):
    async with serving() as fake:
        result = await ask(fake.url, text, timeout_s=0.2 if text == "hang" else 10.0, retries=0)
    assert (result.ending, result.status) == (ending, status)
    assert says in result.error
    assert len(result.attempts) == 1


async def test_nobody_there(unused_tcp_port):
    result = await ask(f"http://127.0.0.1:{unused_tcp_port}", "fine")
    assert (result.ending, result.status) == (Ending.CONNECTION, None)
    assert result.error


async def test_a_refusal_is_retried_after_what_it_asks():
    async with serving() as fake:
        result = await ask(fake.url, "busy_once:0.2", retries=2)
    assert result.ending is Ending.DONE
    assert [attempt.status for attempt in result.attempts] == [429, 200]
    assert result.first - result.sent >= 0.199, "the wait is part of what the client saw"
    assert result.output_tokens == 8


async def test_retries_are_bounded_and_the_server_can_forbid_them():
    async with serving() as fake:
        result = await ask(fake.url, "never_again", retries=2)
        assert [attempt.status for attempt in result.attempts] == [503]
        result = await ask(fake.url, "status:500", retries=1)
        assert [attempt.status for attempt in result.attempts] == [500, 500]
        result = await ask(fake.url, "error_event", retries=2)
        assert len(result.attempts) == 1, "an answer that has begun is not asked for again"


async def test_what_is_sent():
    async with serving() as fake:
        options = {
            "extra": {"temperature": 0},
            "headers": {"authorization": "Bearer k"},
            "tenant": "t",
            "max_tokens": 9,
        }
        await ask(fake.url + "/v1/", "fine", **options)
        headers, body = fake.seen[0]
    assert body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "fine"}],
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
    }
    sent = {name.lower(): value for name, value in headers.items()}
    assert (sent["authorization"], sent["x-tenant"]) == ("Bearer k", "t")


def test_whose_max_tokens_counts():
    client = Client(ClientOptions(url="http://x", model="m", max_tokens=1), generator(0))
    assert b'"max_tokens":1,' in client.body(Prompt(prompt="p"))
    assert b'"max_tokens":1,' in client.body(Prompt(prompt="p", max_tokens=2))
    assert b'"max_tokens":3,' in client.body(Prompt(prompt="p", max_tokens=2), 3)


async def test_a_cancelled_request_keeps_what_was_seen():
    async with serving(gap_s=0.05) as fake, Client(ClientOptions(url=fake.url, model="m"), generator(0)) as client:
        start, recording = clock.precise(), Recording(0, 0.0)
        task = asyncio.create_task(client.send(client.body(Prompt(prompt="fine")), recording, start))
        while recording.first is None:  # noqa: ASYNC110 - the client has no event for it
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        result = recording.result(Ending.ABANDONED, clock.precise() - start)
    assert 1 <= len(result.output_times) < 4


async def test_the_first_model(unused_tcp_port):
    async with serving() as fake:
        assert await first_model(fake.url, {}) == "tiny"
        with pytest.raises(ConfigError, match="status 404"):
            await first_model(f"{fake.url}/elsewhere", {})
    with pytest.raises(ConfigError, match="/v1/models"):
        await first_model(f"http://127.0.0.1:{unused_tcp_port}", {})


def test_addresses():
    assert base_url("http://h:1") == base_url("http://h:1/v1/") == "http://h:1/v1"
    with pytest.raises(ConfigError, match="must start with http"):
        base_url("h:1")
