from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from foreserve.app import App
from foreserve.core import Outcome, OutcomeKind
from foreserve.running import Running
from foreserve.services.llm import LLM
from foreserve.services.upstream import Upstream
from tests.engines.scripted_server import USAGE, ScriptedServer, delta, event, hang, hang_up, scripted, streaming
from tests.gateway.served import gateway

CHAT = "/v1/chat/completions"
DONE = event(b"[DONE]")
OFF = {"history": False}


class Front:
    """The gateway in front of a scripted server, and a client of it."""

    def __init__(self, url: str, running: Running, server: ScriptedServer, client: aiohttp.ClientSession) -> None:
        self.url = url
        self.running = running
        self.server = server
        self.client = client
        self.outcomes: list[Outcome] = []
        running.observers.append(self.outcomes.append)

    async def post(self, body: object, path: str = CHAT, **words: Any) -> tuple[aiohttp.ClientResponse, bytes]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json"} | words.pop("headers", {})
        async with self.client.post(self.url + path, data=data, headers=headers, **words) as answer:
            return answer, await answer.read()


@asynccontextmanager
async def front(app: dict[str, Any] | None = None, **words: Any) -> AsyncIterator[Front]:
    async with scripted() as server, aiohttp.ClientSession() as client:
        services = {"m": Upstream([server.url], **{"model": "m"} | words)}
        async with gateway(App(state=OFF, **services | (app or {}))) as (url, running):
            yield Front(url, running, server, client)


async def test_a_request_and_its_answer_pass_byte_for_byte() -> None:
    raw = b'{"choices": [ {"message":{"content":null,"tool_calls":[{"id":"1"}]}} ], "odd":1.10}'

    async def script(request: web.Request) -> web.StreamResponse:
        headers = {"x-theirs": "1", "connection": "keep-alive, x-hop", "x-hop": "2", "x-request-id": "theirs"}
        return web.Response(body=raw, content_type="application/json", headers=headers)

    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 200_000}}
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": [image]}],
        "tools": [{"type": "function"}],
        "x": None,
    }
    sent = json.dumps(body, indent=1).encode()
    async with front() as f:
        f.server.script = script
        answer, got = await f.post(sent, headers={"x-slo-ms": "60000", "x-tenant": "t", "x-own": "3"})
        assert (answer.status, got) == (200, raw)
        assert answer.headers["content-length"] == str(len(raw))
        assert answer.headers["x-theirs"] == "1"
        assert "x-hop" not in answer.headers
        request, arrived = f.server.seen[-1]
        assert arrived == sent
        assert request.headers["x-own"] == "3"
        assert not {"x-slo-ms", "x-tenant"} & {name.lower() for name in request.headers}
        assert request.headers["x-request-id"] == answer.headers["x-request-id"] == f.outcomes[0].id
        assert (f.outcomes[0].kind, f.outcomes[0].tenant) == (OutcomeKind.DONE, "t")


async def test_a_stream_passes_and_is_counted_on_the_quiet() -> None:
    parts = [
        event(delta(role="assistant", reasoning_content="思")),
        event(delta(tool_calls=[{"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}])),
        event(delta(tool_calls=[{"index": 0, "function": {"arguments": '{"city": "Zür'}}])),
    ]
    usage = event({"choices": [], "usage": USAGE})
    async with front() as f:
        data = b"".join(parts) + usage + DONE
        f.server.script = streaming(*(data[i : i + 11] for i in range(0, len(data), 11)))
        answer, got = await f.post({"model": "m", "stream": True})
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert got == b"".join(parts) + DONE
        assert f.outcomes[-1].usage == {"prompt_tokens": 7, "output_tokens": 3}
        _, got = await f.post({"model": "m", "stream": True, "stream_options": {"include_usage": True}})
        assert got == data


async def test_our_own_words_stay_with_us() -> None:
    async with front() as f:
        await f.post({"model": "m", "foreserve": {"tenant": "t2", "slo_ms": 50_000}, "max_tokens": 9})
        assert f.server.last_json() == {"model": "m", "max_tokens": 9}
        assert f.outcomes[-1].tenant == "t2"
        assert f.outcomes[-1].cost["kv_tokens"] > 9
        answer, got = await f.post({"model": "m", "foreserve": {"slo": 1}})
        assert answer.status == 400
        assert b"slo_ms" in got
        assert len(f.server.seen) == 1


async def test_a_model_goes_by_our_name_or_theirs() -> None:
    async with front(model=None) as f, aiohttp.ClientSession() as client:
        await f.post({"model": "m"})
        assert f.server.last_json() == {"model": "m"}
        answer, got = await f.post({"model": "nope"})
        assert answer.status == 404
        assert "There are: m" in json.loads(got)["error"]["message"]
        await f.post({"messages": []})
        assert f.server.last_json() == {"messages": []}
        async with client.get(f.url + "/v1/models") as listed:
            assert [row["id"] for row in (await listed.json())["data"]] == ["m"]
    async with front(app={"tiny": LLM("simulated")}) as f:
        answer, _ = await f.post({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3})
        assert answer.status == 200
        assert not f.server.seen
        await f.post({"model": "m"})
        assert f.server.seen


async def test_a_name_of_ours_becomes_theirs() -> None:
    async with scripted(models=("org/long-name",)) as server, aiohttp.ClientSession() as client:
        app = App(state=OFF, chat=Upstream([server.url], model="org/long-name"))
        async with gateway(app) as (url, _):
            for name in ("chat", "org/long-name"):
                async with client.post(url + CHAT, json={"n": 1, "model": name}) as answer:
                    assert answer.status == 200
                assert server.last_json() == {"n": 1, "model": "org/long-name"}


@pytest.mark.parametrize("status", [400, 404, 422, 500])
async def test_an_error_of_the_server_is_passed_unchanged(status: int) -> None:
    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=b'{"error":  {"code": "odd"}}', content_type="application/problem+json")

    async with front() as f:
        f.server.script = script
        answer, got = await f.post({"model": "m", "stream": True})
        assert (answer.status, got) == (status, b'{"error":  {"code": "odd"}}')
        assert answer.headers["content-type"] == "application/problem+json"
        assert (f.outcomes[-1].kind, f.outcomes[-1].code) == (OutcomeKind.FAILED, "upstream_refused")


async def test_back_pressure_reaches_the_client_with_its_retry_after() -> None:
    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(status=429, body=b"full", headers={"Retry-After": "1"})

    async with front() as f:
        f.server.script = script
        answer, got = await f.post({"model": "m"})
        assert (answer.status, got, answer.headers["Retry-After"]) == (429, b"full", "1")
        assert len(f.server.seen) == 2


async def test_a_stream_that_breaks_off_ends_with_an_error_event() -> None:
    async with front() as f:
        f.server.script = streaming(event(delta(content="a")), pause_s=0.05, then=hang_up)
        answer, got = await f.post({"model": "m", "stream": True})
        assert answer.status == 200
        first, last = got.split(b"\n\n")[:2]
        assert first + b"\n\n" == event(delta(content="a"))
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] in ("engine_error", "replica_lost")
        assert b"[DONE]" not in got


async def test_an_answer_of_another_kind_that_breaks_off_is_not_taken_for_whole() -> None:
    async def script(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "audio/wav"})
        await response.prepare(request)
        await response.write(b"x" * 1000)
        await asyncio.sleep(0.05)
        return await hang_up(request)

    async with front() as f:
        f.server.script = script
        with pytest.raises(aiohttp.ClientPayloadError):
            await f.post({"model": "m"}, path="/v1/audio/speech")


def pouring(size: int, given: list[int], kind: str = "audio/wav", part: bytes = bytes(2**16)) -> Any:
    """A script whose answer is `size` bytes, as fast as they are taken; `given` holds how many were."""

    async def script(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        while given[0] < size:
            await response.write(part)
            given[0] += len(part)
        return response

    return script


async def test_a_server_is_read_no_faster_than_its_client() -> None:
    given = [0]
    async with front() as f:
        f.server.script = pouring(200 * 2**20, given)
        async with f.client.post(f.url + CHAT, json={"model": "m"}) as answer:
            await answer.content.readany()
            before = -1
            async with asyncio.timeout(20):
                while given[0] != before:
                    before = given[0]
                    await asyncio.sleep(0.3)
            # What a full backlog holds, and the buffers of the four sockets.
            assert given[0] < 64 * 2**20
        async with asyncio.timeout(5):
            await f.server.left.wait()


@pytest.mark.parametrize(
    ("kind", "part"), [("audio/wav", bytes(range(256)) * 256), ("text/event-stream", b"data: x\n\n" * 4096)]
)
async def test_a_slow_client_gets_all_of_a_large_answer(kind: str, part: bytes) -> None:
    given = [0]
    size = 300 * len(part)
    async with front(stall_s=2.0) as f:
        f.server.script = pouring(size, given, kind, part)
        async with f.client.post(f.url + CHAT, json={"model": "m"}) as answer:
            digest, got = hashlib.sha256(), 0
            while data := await answer.content.read(2**18):
                digest.update(data)
                got += len(data)
                await asyncio.sleep(0.06)  # longer than a stall in all, far shorter each
        assert got == size
        assert digest.digest() == hashlib.sha256(part * 300).digest()
        async with asyncio.timeout(5):
            while not f.outcomes:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert f.outcomes[0].kind == OutcomeKind.DONE


@pytest.mark.parametrize("mebibytes", [3, 12, 40])
async def test_a_large_json_answer_comes_whole(mebibytes: int) -> None:
    sent = b'{"x": "' + b"y" * (mebibytes * 2**20) + b'"}'

    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(body=sent, content_type="application/json")

    async with front() as f:
        f.server.script = script
        async with asyncio.timeout(20):
            answer, got = await f.post({"model": "m"})
        assert got == sent
        assert ("content-length" in answer.headers) == (mebibytes == 3)


async def test_a_client_that_goes_away_stops_the_server() -> None:
    async with front() as f:
        for script in (hang, streaming(event(delta(content="a")), then=hang)):
            f.server.script = script
            f.server.busy.clear()
            f.server.left.clear()
            task = asyncio.create_task(f.post({"model": "m", "stream": True}))
            await asyncio.wait_for(f.server.busy.wait(), 5)
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.wait_for(f.server.left.wait(), 5)
        await asyncio.sleep(0.1)
        assert [outcome.kind for outcome in f.outcomes] == [OutcomeKind.CANCELLED] * 2


async def test_limits_hold_in_front_of_a_server_that_has_none() -> None:
    async with front(max_running=1, queue={"max_waiting": 1, "max_wait_s": 0.3}) as f:
        f.server.script = hang
        first = asyncio.create_task(f.post({"model": "m"}))
        await asyncio.wait_for(f.server.busy.wait(), 5)
        second = asyncio.create_task(f.post({"model": "m"}))
        await asyncio.sleep(0.05)
        third, got = await f.post({"model": "m"})
        assert third.status == 429
        assert "queue is full" in json.loads(got)["error"]["message"]
        assert "Retry-After" in third.headers
        assert (await second)[0].status == 429
        assert len(f.server.seen) == 1
        late, _ = await f.post({"model": "m"}, headers={"x-slo-ms": "50"})
        assert late.status == 504
        first.cancel()


async def test_other_paths_go_to_the_server_as_they_are() -> None:
    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(status=201, body=await request.read(), headers={"x-path": request.raw_path})

    async with front() as f:
        f.server.script = script
        async with f.client.get(f.url + "/v1/files?limit=%202") as answer:
            assert (answer.status, answer.headers["x-path"]) == (201, "/v1/files?limit=%202")
            assert "x-request-id" in answer.headers
        form = aiohttp.FormData({"model": "m"})
        form.add_field("file", b"\x00\xff" * 100_000, filename="a.wav")
        async with f.client.post(f.url + "/v1/audio/transcriptions", data=form) as answer:
            assert answer.status == 201
            assert b"\x00\xff" * 100_000 in await answer.read()
        async with f.client.delete(f.url + "/v1/files/abc") as answer:
            assert answer.headers["x-path"] == "/v1/files/abc"
        assert not f.outcomes
        answer, got = await f.post(b"not json", path="/v1/whatever")
        assert (answer.status, got) == (201, b"not json")
        answer, got = await f.post({"model": "m", "input": "x"}, path="/v1/embeddings")
        assert (answer.status, json.loads(got)) == (201, {"model": "m", "input": "x"})
        assert len(f.outcomes) == 1


@pytest.mark.parametrize(
    ("kind", "path", "encoding"),
    [
        ("text/plain", "/v1/embeddings", "utf-8"),
        ("Application/JSON", "/v1/responses", "utf-8"),
        ("application/octet-stream", CHAT + "/", "utf-8"),
        ("", "/v1/embeddings", "utf-8-sig"),
        ("text/plain", "/v1/embeddings", "utf-16"),
    ],
)
async def test_no_media_type_leads_past_the_queue(kind: str, path: str, encoding: str) -> None:
    async with front() as f:
        sent = " \n{}".format(json.dumps({"model": "m"})).encode(encoding)
        answer, _ = await f.post(sent, path=path, headers={"content-type": kind})
        assert answer.status == 200
        assert f.server.seen[-1][1] == sent
        assert [outcome.kind for outcome in f.outcomes] == [OutcomeKind.DONE]


async def test_a_file_of_json_lines_is_no_request() -> None:
    async with front() as f:
        sent = b'{"model": "m"}\n{"model": "m"}\n'
        answer, _ = await f.post(sent, path="/v1/files", headers={"content-type": "application/jsonl"})
        assert (answer.status, f.server.seen[-1][1]) == (200, sent)
        assert not f.outcomes


async def test_an_upload_that_turns_out_too_large_is_told_so() -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    async with front(app={"server": {"max_body_bytes": 4096}}) as f:
        for method in ("POST", "PUT"):
            async with f.client.request(method, f.url + "/v1/files", data=parts()) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (413, "request_too_large")


async def test_an_upload_that_stops_coming_is_told_so() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        await asyncio.sleep(60)

    async with (
        front(app={"server": {"body_s": 0.2}}) as f,
        f.client.post(f.url + "/v1/files", data=parts()) as answer,
    ):
        assert (answer.status, (await answer.json())["error"]["code"]) == (408, "request_timeout")


@pytest.mark.parametrize("path", ["/v1/../x", "/v1/%2e%2E/x", "/v1/a/%2e%2e%2f../x", "/v1/..%5cx", "/v1/./x"])
async def test_no_path_leads_out(path: str) -> None:
    async with front() as f:
        for method in ("GET", "POST"):
            async with f.client.request(method, URL(f.url + path, encoded=True), json={"model": "m"}) as answer:
                assert answer.status == 400
        assert not f.server.seen


async def test_header_values_beyond_latin_1_pass() -> None:
    async def script(request: web.Request) -> web.StreamResponse:
        return web.json_response({}, headers={"x-city": "東京", "x-name": "Zoë"})

    async with front() as f:
        f.server.script = script
        answer, _ = await f.post({"model": "m"})
        async with f.client.get(f.url + "/v1/files") as relayed:
            for one in (answer, relayed):
                assert (one.status, one.headers["x-city"], one.headers["x-name"]) == (200, "東京", "Zoë")

        async def refuse(request: web.Request) -> web.StreamResponse:
            return web.Response(status=400, body=b"no", headers={"content-type": 'text/x; name="東京"'})

        f.server.script = refuse
        answer, _ = await f.post({"model": "m"})
        assert answer.status == 400
        assert answer.headers["content-type"].startswith('text/x; name="東京"')


async def test_without_upstream_models_other_paths_stay_unknown() -> None:
    async with aiohttp.ClientSession() as client, gateway(App(state=OFF, tiny=LLM("simulated"))) as (url, _):
        async with client.get(url + "/v1/files") as answer:
            assert answer.status == 404
        async with client.get(url + CHAT) as answer:
            assert answer.status == 405


async def test_our_keys_stay_with_us() -> None:
    async with front(app={"server": {"api_keys": [{"key": "ours"}]}}) as f:
        assert (await f.post({"model": "m"}))[0].status == 401
        await f.post({"model": "m"}, headers={"authorization": "Bearer ours"})
        assert "authorization" not in f.server.seen[-1][0].headers
    async with front() as f:
        await f.post({"model": "m"}, headers={"authorization": "Bearer theirs"})
        assert f.server.seen[-1][0].headers["authorization"] == "Bearer theirs"


async def test_observing_holds_nothing_back_and_tells_what_would_have_been() -> None:
    async with front(observe=True, max_running=1, queue={"max_waiting": 1}) as f:
        gate = asyncio.Event()

        async def script(request: web.Request) -> web.StreamResponse:
            await gate.wait()
            return await f.server.answer(request)

        f.server.script = script
        sent = b'{"model": "m", "stream":true, "x":  1}'
        tasks = []
        for n in range(3):
            tasks.append(asyncio.create_task(f.post(sent, headers={"x-slo-ms": "1"})))
            async with asyncio.timeout(5):
                while f.server.running <= n:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        gate.set()
        answers = [answer for answer, _ in await asyncio.gather(*tasks)]
        assert [answer.status for answer in answers] == [200] * 3
        assert {body for _, body in f.server.seen} == {sent}
        said = [answer.headers["x-foreserve-observed"] for answer in answers]
        assert said[0] == "would have started at once"
        assert said[2].startswith("would have been refused: the queue is full")
        async with f.client.get(f.url + "/v1/foreserve/observe") as answer:
            report = (await answer.json())["services"]["m"]
        assert (report["requests"], report["at_once"], report["waited"], report["shed"]) == (3, 1, 1, 1)
        await f.post({"model": "unknown"})
        assert f.server.last_json() == {"model": "unknown"}


async def test_observing_foresees_and_learns_nothing(tmp_path: Path) -> None:
    async with scripted() as server, aiohttp.ClientSession() as client:
        served = Upstream([server.url], model="m", observe=True)
        app = App(state={"folder": str(tmp_path)}, m=served)
        async with gateway(app) as (url, running):
            there = Front(url, running, server, client)
            answer, _ = await there.post({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
            assert answer.status == 200
            status = served.foreseer.status()
    assert (status.tier, status.answers, status.pending) == ("off", 0, 0)
    assert [outcome.forecast for outcome in there.outcomes] == [None]
    assert not (tmp_path / "learning.sqlite3").exists()


async def test_answers_are_foreseen_and_learned_from_by_the_servers_own_usage() -> None:
    async def script(request: web.Request) -> web.StreamResponse:
        answer = {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 9, "completion_tokens": 12}}
        return web.json_response(answer)

    said = {"model": "m", "messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 100}
    async with front(foresight={"predictor": "fast"}) as there:
        there.server.script = script
        for _ in range(8):
            answer, _ = await there.post(said)
            assert answer.status == 200
        await there.post({**said, "n": 2})
        await there.post({"model": "m", "input": "x"}, path="/v1/embeddings")
        forecasts = [outcome.forecast for outcome in there.outcomes]
        kind = there.running.services["m"].kind
        assert isinstance(kind, Upstream)
        assert kind.foreseer.status().answers == 8
    assert [forecast.output.source if forecast else None for forecast in forecasts] == [
        *[None] * 5, *["histogram"] * 3, None, None
    ]  # fmt: skip
    last = forecasts[7]
    assert last is not None
    assert (last.input_tokens, last.most_tokens) == (10, 100)
    assert 11.0 <= last.output.p50 <= 13.0
