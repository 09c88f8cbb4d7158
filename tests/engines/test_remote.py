from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from foreserve.core import Chunk
from foreserve.engines import remote_watch
from foreserve.engines.remote import RemoteEngine
from foreserve.errors import EngineStartError
from tests.engines.remote_engine import DONE, engine, run, work
from tests.engines.scripted_server import USAGE, VLLM_METRICS, delta, event, hang, hang_up, scripted, streaming


async def test_a_plans_priority_is_put_into_the_body_where_that_was_asked_for() -> None:
    raw = b'{"model": "m", "priority":5, "odd" : 1e400}'
    async with scripted() as server:
        async with engine(server, priority=True) as made:
            for plan, sent in (
                ({"priority": 3}, b'{"model":"m","priority":3,"odd":1e400}'),
                ({"priority": -2}, b'{"model":"m","priority":-2,"odd":1e400}'),
                ({"batch": 1}, raw),
                (None, raw),
            ):
                await run(made, work(raw), plan)
                assert server.seen[-1][1] == sent
            await run(made, work(b"no json"), {"priority": 3})
            assert server.seen[-1][1] == b"no json"
            await run(made, work({"stream": True}, count_tokens=True), {"priority": 7})
            assert server.last_json() == {"stream": True, "priority": 7, "stream_options": {"include_usage": True}}
        async with engine(server) as made:
            await run(made, work(raw), {"priority": 3})
            assert server.seen[-1][1] == raw


async def test_usage_is_asked_for_on_our_account_and_kept_from_the_client() -> None:
    first, usage = event(delta(content="a")), event({"choices": [], "usage": USAGE})
    async with scripted() as server, engine(server) as made:
        server.script = streaming(first, usage + DONE)
        asked = {"stream": True, "stream_options": {"continuous_usage_stats": False}}
        _, body, finish, _ = await run(made, work(asked, count_tokens=True))
        assert body == first + DONE
        assert finish.usage == {"prompt_tokens": 7, "output_tokens": 3}
        assert server.last_json()["stream_options"] == {"continuous_usage_stats": False, "include_usage": True}
        _, body, _, _ = await run(made, work(asked))
        assert body == first + usage + DONE
        assert server.last_json() == asked


async def test_a_server_that_refuses_stream_options_is_asked_without_from_then_on() -> None:
    async def script(request: web.Request) -> web.StreamResponse:
        if b"stream_options" in await request.read():
            return web.json_response({"error": "stream_options: extra fields not permitted"}, status=422)
        return await streaming(event(delta(content="a")))(request)

    async with scripted() as server, engine(server) as made:
        server.script = script
        for asks in (2, 1):
            server.seen.clear()
            _, body, finish, _ = await run(made, work({"stream": True}, count_tokens=True))
            assert (body, finish.reason, len(server.seen)) == (event(delta(content="a")), "stop", asks)


async def test_llama_cpp_tells_its_counts_unasked() -> None:
    last = event({"choices": [{"delta": {}}], "timings": {"cache_n": 1, "prompt_n": 2, "predicted_n": 4}})
    async with scripted(make="llamacpp") as server, engine(server, model="whatever") as made:
        server.script = streaming(last, DONE)
        _, body, finish, _ = await run(made, work({"stream": True}, count_tokens=True))
        assert body == last + DONE
        assert server.last_json() == {"stream": True}
        assert finish.usage == {"prompt_tokens": 3, "output_tokens": 4, "cached_tokens": 1}


async def test_a_refusal_is_kept_whole() -> None:
    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(status=400, body=b'{"error": {"param": "x"}}', content_type="application/json")

    async with scripted() as server, engine(server) as made:
        server.script = script
        chunks = [chunk async for chunk in made.run(work())]
        assert len(chunks) == 1
        finish = chunks[0].finish
        assert finish is not None
        assert finish.reason == "rejected"
        assert finish.detail["status"] == 400
        assert finish.detail["body"] == b'{"error": {"param": "x"}}'
        assert "retry" not in finish.detail
        assert len(server.seen) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_back_pressure_holds_the_place_and_may_be_tried_once_more(status: int) -> None:
    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Retry-After": "0.2"})

    async with scripted() as server, engine(server) as made:
        server.script = script
        loop = asyncio.get_running_loop()
        before = loop.time()
        first = [chunk async for chunk in made.run(work())][-1].finish
        assert loop.time() - before >= 0.2
        assert first is not None
        assert (first.reason, first.detail["retry"], first.detail["retry_after"]) == ("rejected", True, 0.2)
        second = [chunk async for chunk in made.run(work(attempt=1))][-1].finish
        assert second is not None
        assert "retry" not in second.detail
        once = [chunk async for chunk in made.run(work(idempotent=False))][-1].finish
        assert once is not None
        assert "retry" not in once.detail


async def test_503_of_a_server_that_has_answered_nothing_since_it_came_up_may_be_tried_again_and_again() -> None:
    async def refused(attempt: int, **words: Any) -> Any:
        finish = [chunk async for chunk in made.run(work(attempt=attempt, **words))][-1].finish
        assert finish is not None
        assert finish.error == f'the upstream server {server.url} answered 503, and says "Loading model"'
        return finish.detail.get("retry")

    async with scripted() as server, engine(server, loading_s=60.0) as made:
        server.loading = True
        assert [await refused(attempt) for attempt in (0, 1, 5)] == ["loading"] * 3
        assert await refused(0, idempotent=False) is None
        server.loading = False
        assert (await run(made, work()))[2].reason == "stop"
        server.loading = True
        assert [await refused(attempt) for attempt in (0, 1)] == [True, None], "it is full"
    async with scripted() as server, engine(server, loading_s=0.3) as made:
        server.loading = True
        await asyncio.sleep(0.4)
        assert await refused(1) is None, "too long ago"


async def test_cancel_closes_the_connection_before_and_within_an_answer() -> None:
    async with scripted() as server, engine(server) as made:
        for script in (hang, streaming(event(delta(content="a")), then=hang)):
            server.script = script
            server.left.clear()
            server.busy.clear()
            got: list[Chunk] = []

            async def read(got: list[Chunk] = got) -> None:
                got.extend([chunk async for chunk in made.run(work())])

            task = asyncio.create_task(read())
            await asyncio.wait_for(server.busy.wait(), 5)
            await asyncio.sleep(0.05)
            await made.cancel("r1")
            await made.cancel("r1")
            await asyncio.wait_for(server.left.wait(), 5)
            await task
            assert got[-1].finish is not None
            assert got[-1].finish.reason == "cancelled"
        await made.cancel("unknown")


async def test_leaving_the_iterator_closes_the_connection() -> None:
    async with scripted() as server, engine(server) as made:
        server.script = streaming(event(delta(content="a")), then=hang)
        chunks = made.run(work())
        await anext(chunks)
        await chunks.aclose()  # type: ignore[attr-defined]
        await asyncio.wait_for(server.left.wait(), 5)


async def test_a_dropped_connection_is_asked_again_once_when_the_server_is_well() -> None:
    async with scripted() as server, engine(server) as made:
        drops = [hang_up]

        async def script(request: web.Request) -> web.StreamResponse:
            return await (drops.pop() if drops else server.answer)(request)

        server.script = script
        assert (await run(made, work()))[2].reason == "stop"
        assert len(server.seen) == 2
        drops += [hang_up] * 2
        finish = [chunk async for chunk in made.run(work())][-1].finish
        assert finish is not None
        assert (finish.reason, finish.detail) == ("error", {"retry": True})
        drops[:] = [hang_up]
        server.seen.clear()
        finish = [chunk async for chunk in made.run(work(idempotent=False))][-1].finish
        assert finish is not None
        assert finish.reason == "error"
        assert len(server.seen) == 1


async def test_a_server_that_goes_away_ends_failed() -> None:
    async with scripted() as server, engine(server) as made:
        fate = asyncio.create_task(made.failed())
        await asyncio.sleep(0.05)
        assert not fate.done()
        await server.stop()
        finish = [chunk async for chunk in made.run(work())][-1].finish
        assert finish is not None
        assert finish.detail == {"retry": True}
        assert "cannot be reached" in await asyncio.wait_for(fate, 5)


async def test_an_idle_engine_notices_that_its_server_went_away() -> None:
    async with scripted() as server, engine(server) as made:
        server.health = 503
        assert "answers 503" in await asyncio.wait_for(made.failed(), 10)


async def test_load_comes_from_metrics_and_is_unknown_without() -> None:
    async with scripted() as server, engine(server) as made:
        assert (await made.load()).running is None
    async with scripted() as server:
        server.metrics = VLLM_METRICS
        async with engine(server) as made:
            await asyncio.sleep(1.2)
            load = await made.load()
            assert (load.running, load.waiting, load.kv_fraction) == (2, 5, 0.25)


def page(running: int, waiting: int, tokens: int) -> str:
    return f"""\
vllm:num_requests_running {running}
vllm:num_requests_waiting {waiting}
vllm:generation_tokens_total {tokens}
vllm:inter_token_latency_seconds_sum {tokens / 50}
vllm:inter_token_latency_seconds_count {tokens}
"""


async def test_requests_that_came_past_us_are_counted_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote_watch, "_EVERY_S", 0.05)
    async with scripted() as server:
        server.metrics = page(0, 0, 0)
        async with engine(server) as made:
            server.script = hang
            ours = [asyncio.create_task(run(made, work(id=f"r{n}", answers=n + 1))) for n in range(2)]
            for there, others in ((3, 0), (3, 0), (5, 2), (9, 6), (2, 0)):
                for n in range(10):
                    server.metrics = page(there - 1, 1, there * 100 + n)
                    await asyncio.sleep(0.05)
                load = await made.load()
                assert (load.running, load.waiting, load.others) == (there - 1, 1, others)
            assert load.last_step_s == pytest.approx(1 / 50)
            assert [r.message for r in caplog.records if "did not come from here" in r.message] == [
                f"{server.url} has 2 requests that did not come from here; it is given fewer"
            ]
            # A count that stands still may be that of the last step, long ago.
            server.metrics = page(7, 1, 0)
            await asyncio.sleep(0.5)
            assert (await made.load()).others == 0
            for task in ours:
                task.cancel()


async def test_where_nothing_is_told_nothing_is_known_of_others() -> None:
    async with scripted() as server, engine(server) as made:
        assert (await made.load()).others is None


async def test_the_servers_key_takes_the_place_of_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted() as server:
        with pytest.raises(EngineStartError, match="UPSTREAM_KEY"):
            await RemoteEngine(server.url, api_key_env="UPSTREAM_KEY").start()
        monkeypatch.setenv("UPSTREAM_KEY", "k1")
        async with engine(server, api_key_env="UPSTREAM_KEY") as made:
            await run(made, work(headers={"authorization": "Bearer theirs"}))
            assert server.seen[-1][0].headers.getall("Authorization") == ["Bearer k1"]
