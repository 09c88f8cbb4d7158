from __future__ import annotations

import pytest
from aiohttp import web

from foreserve.engines.forwarding import Body
from tests.engines.remote_engine import CHAT, DONE, engine, run, work
from tests.engines.scripted_server import USAGE, delta, event, hang, hang_up, scripted, streaming


async def test_a_json_answer_passes_byte_for_byte_and_is_counted() -> None:
    async with scripted() as server, engine(server) as made:
        raw = b'{ "odd"  :1.0,"choices":[],\n "usage": {"prompt_tokens":7,"completion_tokens":3} }'

        async def script(request: web.Request) -> web.StreamResponse:
            return web.Response(body=raw, content_type="application/json", headers={"x-theirs": "1"})

        server.script = script
        sent = b'{"model":"m","tools":[{"x":1e400}],"unknown":null}'
        head, body, finish, _ = await run(made, work(sent, headers={"x-one": "2"}))
        assert head is not None
        assert (head.status, head.headers["x-theirs"], body) == (200, "1", raw)
        assert (finish.reason, finish.usage) == ("stop", {"prompt_tokens": 7, "output_tokens": 3})
        request, got = server.seen[-1]
        assert (got, request.path, request.headers["x-one"]) == (sent, CHAT, "2")


async def test_an_event_stream_passes_whole_events_however_it_is_cut() -> None:
    events = [
        event(delta(role="assistant", content="")),
        b'event: x\r\ndata: {"text": "\xf0\x9f\x99\x82"}\r\n\r\n',
        event(delta(reasoning_content="hm … 思")),
        event(delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": '{"a'}}])),
        b": ping\n\n",
        event({"choices": [], "usage": USAGE}),
        DONE,
    ]
    data = b"".join(events)
    async with scripted() as server, engine(server) as made:
        for size in (1, 3, 7, 100, len(data)):
            server.script = streaming(*(data[i : i + size] for i in range(0, len(data), size)))
            head, body, finish, chunks = await run(made, work({"stream": True}))
            assert head is not None
            assert head.content_type == "text/event-stream; charset=utf-8"
            assert body == data
            assert finish.usage == {"prompt_tokens": 7, "output_tokens": 3}
            ends = {len(b"".join(events[:n])) for n in range(len(events) + 1)}
            at = 0
            for chunk in chunks[1:-1]:
                at += len(chunk.data.data)
                assert at in ends, "an event was split"


@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("reason", ["length", "stop"])
async def test_a_stream_that_ended_at_its_limit_ends_so_and_passes_as_it_was(reason: str, count: bool) -> None:
    last = event({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    usage = event({"choices": [], "usage": USAGE})
    async with scripted() as server, engine(server) as made:
        server.script = streaming(event(delta(content="a")), last, usage + DONE)
        _, body, finish, _ = await run(made, work({"stream": True}, count_tokens=count))
        assert (finish.reason, finish.usage["output_tokens"]) == (reason, 3)
        assert body == event(delta(content="a")) + last + (DONE if count else usage + DONE)


async def test_a_json_answer_of_which_one_choice_was_cut_ends_so() -> None:
    raw = b'{"choices":[{"finish_reason":"stop"},{ "finish_reason" : "length"}],"usage":{"completion_tokens":9}}'

    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(body=raw, content_type="application/json")

    async with scripted() as server, engine(server) as made:
        server.script = script
        _, body, finish, _ = await run(made, work())
        assert (body, finish.reason, finish.usage) == (raw, "length", {"output_tokens": 9})


async def test_a_stream_without_a_last_blank_line_loses_nothing() -> None:
    async with scripted() as server, engine(server) as made:
        server.script = streaming(b"data: 1\n\ndata: 2")
        assert (await run(made, work()))[1] == b"data: 1\n\ndata: 2"


async def test_silence_ends_an_answer() -> None:
    async with scripted() as server, engine(server, timeout_s=0.1) as made:
        server.script = streaming(event(delta(content="a")), then=hang)
        _, body, finish, _ = await run(made, work())
        assert body == event(delta(content="a"))
        assert finish.reason == "error"
        assert "said nothing for 0.1 s" in (finish.error or "")


async def test_an_answer_broken_off_part_way_says_so() -> None:
    async with scripted() as server, engine(server) as made:
        server.script = streaming(event(delta(content="a")), pause_s=0.05, then=hang_up)
        _, body, finish, _ = await run(made, work())
        assert body == event(delta(content="a"))
        assert finish.reason == "error"
        assert finish.detail is None
        assert "broke off" in (finish.error or "")


async def test_other_answers_pass_as_they_come() -> None:
    audio = bytes(range(256)) * 1000

    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(body=audio, content_type="audio/wav")

    async with scripted() as server, engine(server) as made:
        server.script = script
        head, body, finish, chunks = await run(made, work(path="/v1/audio/speech?x=%20y"))
        assert head is not None
        assert (head.content_type, body, finish.reason) == ("audio/wav", audio, "stop")
        assert all(isinstance(chunk.data, Body) for chunk in chunks[1:-1])
        assert server.seen[-1][0].raw_path == "/v1/audio/speech?x=%20y"
