from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from foreserve import App, function
from foreserve.running import Running
from foreserve.services.upstream import Upstream
from foreserve.settings import ApiKey, ServerSettings
from foreserve.traces.row import Header, TraceRow
from tests.engines.scripted_server import scripted
from tests.gateway.scripted import ScriptedLLM
from tests.gateway.served import gateway

OFF = {"history": False}
PATH = "/v1/foreserve/trace"
SYSTEM = "You are brief. " * 20


@function(launcher="inline")
async def rest(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "rested"


class Reader:
    """A recording that is being read."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def line(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            found: dict[str, Any] = json.loads(await self._answer.content.readline())
        return found

    async def row(self) -> TraceRow:
        return msgspec.convert(await self.line(), TraceRow)

    async def rest(self) -> list[TraceRow]:
        async with asyncio.timeout(10):
            lines = (await self._answer.content.read()).splitlines()
        return [msgspec.json.decode(line, type=TraceRow) for line in lines]


class House:
    def __init__(self, url: str, running: Running, client: aiohttp.ClientSession) -> None:
        self.url = url
        self.running = running
        self.client = client

    async def chat(self, script: str, status: int = 200, system: str = SYSTEM, **words: Any) -> None:
        headers = words.pop("headers", {})
        messages = [{"role": "system", "content": system}, {"role": "user", "content": script}]
        body = {"model": "chat", "messages": messages, **words}
        async with self.client.post(self.url + "/v1/chat/completions", json=body, headers=headers) as reply:
            assert reply.status == status, await reply.text()
            await reply.read()

    @asynccontextmanager
    async def recording(self, **asked: str) -> AsyncIterator[Reader]:
        headers = {"authorization": f"Bearer {key}"} if (key := asked.pop("key", None)) else {}
        async with self.client.get(self.url + PATH, params=asked, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.headers["content-type"].startswith("application/x-ndjson")
            reader = Reader(answer)
            head = msgspec.convert(await reader.line(), Header)
            assert head.epoch > 1.7e9
            yield reader

    async def refused(self, **asked: str) -> tuple[int, str]:
        async with self.client.get(self.url + PATH, params=asked) as answer:
            error = (await answer.json())["error"]
            return answer.status, error["message"]


@asynccontextmanager
async def house(server: dict[str, Any] | None = None, **services: Any) -> AsyncIterator[House]:
    app = App(state=OFF, server=server or {}, **(services or {"chat": ScriptedLLM()}))
    async with aiohttp.ClientSession() as client, gateway(app) as (url, running):
        yield House(url, running, client)


async def test_a_request_and_how_it_went() -> None:
    async with house() as h, h.recording() as reader:
        await h.chat("say Hel|wait 0.05|say lo", headers={"x-tenant": "red", "x-slo-ms": "60000", "x-utility": "2"})
        row = await reader.row()
        assert (row.service, row.tenant, row.utility, row.outcome) == ("chat", "red", 2.0, "done")
        assert row.deadline_s == 60.0
        assert (row.output_tokens, row.most_tokens) == (5, None)
        assert row.first_s is not None
        assert row.total_s is not None
        assert 0.0 < row.first_s < row.total_s - 0.04
        assert (row.text, row.answer) == (None, None)
        assert len(row.prefix) == row.input_tokens // 32 > 8
        assert row.app
        await h.chat("say other", max_tokens=20)
        second = await reader.row()
        assert second.arrival > row.arrival
        assert second.most_tokens == 20
        assert second.app == row.app
        shared = sum(a == b for a, b in zip(row.prefix, second.prefix, strict=False))
        assert shared == len(SYSTEM.encode()) // 32
        await h.chat("say other", system="Another app.")
        assert (await reader.row()).app not in ("", row.app)


async def test_every_choice_is_a_row() -> None:
    async with house() as h, h.recording() as reader:
        await h.chat("say a", n=3)
        rows = [await reader.row() for _ in range(3)]
        assert len({row.arrival for row in rows}) == 1
        assert {row.output_tokens for row in rows} == {1}
        await h.chat("say last")
        assert (await reader.row()).output_tokens == 4


async def test_what_was_not_done_keeps_what_is_known() -> None:
    async with house(chat=ScriptedLLM(slots=1, queue={"max_waiting": 1})) as h, h.recording() as reader:
        await h.chat("say a|fail no paper", status=500)
        assert (await reader.row()).outcome == "failed"
        await h.chat("say ab|hang", status=504, headers={"x-slo-ms": "80"}, max_tokens=50)
        late = await reader.row()
        assert (late.outcome, late.output_tokens, late.most_tokens) == ("expired", 2, 50)
        held = asyncio.create_task(h.chat("wait 0.3|say a"))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(h.chat("say b"))
        await asyncio.sleep(0.05)
        await h.chat("say c", status=429)
        await h.chat("say c", status=429)
        for _ in range(2):
            shed = await reader.row()
            assert (shed.outcome, shed.output_tokens, shed.service) == ("shed", 0, "chat")
        await asyncio.gather(held, waiting)
        assert {(await reader.row()).outcome for _ in range(2)} == {"done"}


async def test_functions_tell_their_seconds() -> None:
    async with house(rest=rest) as h, h.recording() as reader:
        async with h.client.post(h.url + "/v1/functions/rest", json={"seconds": 0.1}) as reply:
            assert reply.status == 200
        row = await reader.row()
        assert (row.service, row.input_tokens, row.output_tokens) == ("rest", 0, 0)
        assert row.seconds is not None
        assert 0.09 < row.seconds < 5


async def test_another_servers_answers_by_its_own_count() -> None:
    async def script(request: web.Request) -> web.StreamResponse:
        usage = {"prompt_tokens": 120, "completion_tokens": 33, "total_tokens": 153}
        message = {"role": "assistant", "content": "so"}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

    async with scripted() as server, house({"record_text": True}, chat=Upstream([server.url], model="m")) as h:
        server.script = script
        async with h.recording(block_tokens="16", text="1") as reader:
            await h.chat("why", max_tokens=64)
            row = await reader.row()
            assert (row.input_tokens, row.output_tokens, row.most_tokens) == (120, 33, 64)
            assert 0 < len(row.prefix) <= 7
            assert row.app
            assert row.text is not None
            assert "You are brief." in row.text
            assert row.answer is not None
            assert json.loads(row.answer)["choices"][0]["message"]["content"] == "so"
            await h.chat("why not", max_tokens=64)
            assert (await reader.row()).prefix[:4] == row.prefix[:4]


async def test_text_only_where_both_want_it() -> None:
    async with house() as h:
        status, message = await h.refused(text="1")
        assert status == 403
        assert "record_text: true" in message
    async with house({"record_text": True}) as h:
        async with h.recording() as reader:
            await h.chat("say secret")
            row = await reader.row()
            assert (row.text, row.answer) == (None, None)
        async with h.recording(text="1") as reader:
            await h.chat("say se|say cret")
            row = await reader.row()
            assert row.answer == "secret"
            assert row.text is not None
            assert "say se|say cret" in row.text


async def test_an_api_key_records_its_own_tenant() -> None:
    keys = [
        ApiKey(key="r", tenant="red"),
        ApiKey(key="b", tenant="blue"),
        ApiKey(key="o", tenant="op", records_all=True),
    ]
    async with house(ServerSettings(api_keys=keys)) as h, h.recording(key="r") as red, h.recording(key="o") as every:
        await h.chat("say a", headers={"authorization": "Bearer b"})
        await h.chat("say a", headers={"authorization": "Bearer r"})
        assert (await red.row()).tenant == "red"
        assert [(await every.row()).tenant for _ in range(2)] == ["blue", "red"]
        assert (await h.refused())[0] == 401


async def test_hashes_of_two_recordings_have_nothing_in_common() -> None:
    async with house() as h, h.recording() as one, h.recording() as other:
        await h.chat("say a")
        first, second = await one.row(), await other.row()
        assert first.prefix
        assert not set(first.prefix) & set(second.prefix)
        assert first.app != second.app


async def test_a_recording_of_some_seconds_waits_for_what_came_in_them() -> None:
    async with house() as h, h.recording(seconds="0.2") as reader:
        held = asyncio.create_task(h.chat("wait 0.5|say a"))
        await asyncio.sleep(0.3)
        await h.chat("say too late")
        rows = await reader.rest()
        assert [row.output_tokens for row in rows] == [1]
        await held


async def test_nothing_is_left_of_it_when_its_reader_has_gone() -> None:
    async with house() as h:
        observers = len(h.running.observers)
        async with h.recording() as reader:
            await h.chat("say a")
            await reader.row()
            assert h.running.services["chat"].watcher is not None
            held = asyncio.create_task(h.chat("wait 0.3|say b"))
            await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            while h.running.services["chat"].watcher is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert len(h.running.observers) == observers
        await held
        async with h.recording() as reader:
            await h.chat("say c")
            assert (await reader.row()).output_tokens == 1


async def test_what_is_wrong_is_said_in_words() -> None:
    async with house() as h:
        assert await h.refused(text="yes") == (400, "`text` is 'yes'; valid: 0, 1")
        assert "`seconds` is '-1'" in (await h.refused(seconds="-1"))[1]
        assert "`seconds` is 'nan'" in (await h.refused(seconds="nan"))[1]
        assert "`block_tokens` is '0'" in (await h.refused(block_tokens="0"))[1]
        async with h.recording(), h.recording(), h.recording(), h.recording():
            status, message = await h.refused()
            assert (status, message) == (503, "4 recordings run already; no other can begin")
