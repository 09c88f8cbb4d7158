from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from foreserve.clock import now
from foreserve.core import Finish
from foreserve.engines.remote import RemoteEngine
from foreserve.engines.remote_pulse import Pulse
from foreserve.engines.remote_server import RemoteServer
from foreserve.engines.remote_watch import Watch
from foreserve.errors import EngineStartError
from tests.engines.remote_engine import engine, work
from tests.engines.scripted_server import ScriptedServer, delta, event, hang, scripted, streaming

QUICK = {"probe": True, "probe_every_s": 0.3, "probe_limit_s": 0.4, "probe_busy_s": 0.4}
SLOW_S = 2.0
"""Well above the sum of the above: what is not found by then is not found by it."""


async def finish_of(made: RemoteEngine, name: str = "r1") -> Finish:
    last = [chunk async for chunk in made.run(work(id=name))][-1].finish
    assert last is not None
    return last


def counters(server: ScriptedServer, n: int, running: int = 2) -> None:
    server.metrics = f"vllm:num_requests_running {running}\nvllm:generation_tokens_total {n}\n"


async def test_a_server_that_hangs_while_its_health_is_well_is_found_when_idle() -> None:
    async with scripted() as server, engine(server, **QUICK) as made:
        assert server.probes == [{"model": "m", "prompt": "1", "max_tokens": 1, "temperature": 0}]
        await asyncio.sleep(0.5)
        assert len(server.probes) >= 2
        server.hangs = True
        reason = await asyncio.wait_for(made.failed(), 5)
        assert f"{server.url} hangs: no answer to a request for one token within" in reason


async def test_one_that_hangs_with_requests_under_way_is_found_and_says_how_many() -> None:
    async with scripted() as server, engine(server, **QUICK) as made:
        server.hangs = True
        tasks = [asyncio.create_task(finish_of(made, f"r{n}")) for n in range(3)]
        assert "nor to 3 others under way" in await asyncio.wait_for(made.failed(), 5)
        await made.close()
        assert {(await task).reason for task in tasks} == {"cancelled"}


async def test_without_probes_it_is_not_found() -> None:
    async with scripted() as server, engine(server, probe_every_s=0.1, probe_limit_s=0.1) as made:
        server.hangs = True
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(made.failed(), 1.0)
        assert not server.probes


async def test_no_probe_is_sent_while_real_answers_flow() -> None:
    async with scripted() as server, engine(server, **QUICK) as made:
        server.script = streaming(*[event(delta(content="a"))] * 20, pause_s=0.1)
        before = len(server.probes)
        assert (await finish_of(made)).reason == "stop"
        assert len(server.probes) <= before + 1


async def test_a_late_probe_proves_nothing_while_another_answer_flows() -> None:
    async with scripted() as server, engine(server, **QUICK) as made:
        server.probed = hang
        server.script = streaming(*[event(delta(content="a"))] * 6, pause_s=0.35)
        fate = asyncio.create_task(made.failed())
        assert (await finish_of(made)).reason == "stop"
        assert not fate.done()
        assert "hangs" in await asyncio.wait_for(fate, 5)


async def test_comments_that_keep_a_stream_alive_are_no_evidence() -> None:
    async with scripted() as server, engine(server, **QUICK) as made:
        server.probed = hang
        server.script = streaming(*[b": ping\n\n"] * 100, pause_s=0.05)
        task = asyncio.create_task(finish_of(made))
        assert "hangs" in await asyncio.wait_for(made.failed(), SLOW_S)
        task.cancel()


async def test_a_server_with_a_long_queue_is_known_by_its_counters() -> None:
    async with scripted() as server:
        counters(server, 0)
        async with engine(server, **QUICK | {"probe_limit_s": 1.2}) as made:
            server.probed = server.script = hang
            waiting = asyncio.create_task(finish_of(made))
            fate = asyncio.create_task(made.failed())
            for n in range(40):
                counters(server, n)
                await asyncio.sleep(0.1)
            assert not fate.done()
            assert "hangs" in await asyncio.wait_for(fate, 10), "its counters stand still now"
            waiting.cancel()


async def test_where_nothing_tells_progress_long_answers_are_given_their_time() -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1.5)
        return await server.answer(request)

    async with scripted() as server, engine(server, **QUICK) as made:
        server.script = slow
        assert (await finish_of(made)).reason == "stop"
        server.probed = hang
        fate = asyncio.create_task(made.failed())
        assert (await finish_of(made)).reason == "stop"
        assert not fate.done()


async def test_one_that_hangs_at_the_start_does_not_become_ready() -> None:
    async with scripted() as server:
        server.hangs = True
        with pytest.raises(EngineStartError, match=r"no answer to a request for one token within 0\.4 s"):
            await RemoteEngine(server.url, **QUICK).start()  # type: ignore[arg-type]


async def test_one_that_loads_is_not_ready_and_is_waited_for_and_429_is_ready() -> None:
    async def full(request: web.Request) -> web.StreamResponse:
        return web.Response(status=429)

    async with scripted() as server:
        server.loading = True
        with pytest.raises(EngineStartError, match=r"/v1/completions answers 503: it is not ready yet"):
            await RemoteEngine(server.url, **QUICK).start()  # type: ignore[arg-type]
        made = RemoteEngine(server.url, **QUICK, loading_s=20.0)  # type: ignore[arg-type]
        start = asyncio.create_task(made.start())
        await asyncio.sleep(1.3)
        assert not start.done()
        server.loading = False
        await asyncio.wait_for(start, 5)
        server.loading = True
        await asyncio.sleep(0.8)
        assert not made._watch._failed.done(), "later 503 says that it is full"
        await made.close()
        server.loading, server.probed = False, full
        async with engine(server, **QUICK):
            pass


async def test_a_busy_one_becomes_ready_by_its_counters() -> None:
    async def read(request: web.Request) -> web.Response:
        counters(server, len(readings))
        readings.append(1)
        return web.Response(text=server.metrics)

    readings: list[int] = []
    async with scripted() as server:
        server.probed = hang
        server._metrics = read  # type: ignore[method-assign]
        await server.stop()
        await server.start()
        made = RemoteEngine(server.url, **QUICK)  # type: ignore[arg-type]
        await made.start()
        await made.close()


async def test_one_that_answers_everything_with_500_is_gone() -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        return web.Response(status=500)

    async with scripted() as server, engine(server, **QUICK) as made:
        server.probed = broken
        assert "answers 500 to a request for one token" in await asyncio.wait_for(made.failed(), 5)


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_one_that_refuses_such_requests_is_asked_in_both_ways_and_then_left_alone(status: int) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    async with scripted() as server:
        server.probed = refuse
        async with engine(server, **QUICK) as made:
            assert [sorted(probe) for probe in server.probes] == [
                ["max_tokens", "model", "prompt", "temperature"],
                ["max_tokens", "messages", "model", "temperature"],
            ]
            server.hangs = True
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(made.failed(), SLOW_S)
            assert len(server.probes) == 2


async def test_one_that_takes_chats_alone_is_probed_by_those() -> None:
    async def chats(request: web.Request) -> web.StreamResponse:
        return await server.answer(request) if "chat" in request.path else web.Response(status=404)

    async with scripted() as server:
        server.probed = chats
        async with engine(server, **QUICK) as made:
            await asyncio.sleep(0.8)
            assert ["prompt" in probe for probe in server.probes][:3] == [True, False, False]
            server.hangs = True
            assert "hangs" in await asyncio.wait_for(made.failed(), 5)


async def test_a_server_that_goes_away_is_gone_rather_than_hung() -> None:
    async with scripted() as server, engine(server, **QUICK | {"probe_limit_s": 3.0}) as made:
        await server.stop()
        assert "cannot be reached" in await asyncio.wait_for(made.failed(), 5)


@asynccontextmanager
async def watched(*deaf: str) -> AsyncIterator[Watch]:
    """What watches a server that says nothing at these paths, with little patience."""
    async with scripted() as server, aiohttp.ClientSession() as session:
        for path in deaf:
            setattr(server, f"_{path}", hang)
        await server.stop()
        await server.start()
        watch = Watch(RemoteServer(server.url, session, {}, 0.1), Pulse(0.1, 0.1, 0.1, 1.0, now()), None)
        watch._every_s = 0.02
        yield watch
        await watch.close()


async def test_a_server_whose_metrics_alone_are_late_is_there_and_one_that_is_deaf_to_all_is_not() -> None:
    async with watched("metrics") as watch:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.failed(), 1.5)
        assert watch.load is None
    async with watched("metrics", "health") as watch:
        assert "/health gives no answer within 0.1 s" in await asyncio.wait_for(watch.failed(), 10)
