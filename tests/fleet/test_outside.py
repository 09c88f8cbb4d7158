"""Outside fleets of scripted servers: what is told, when, and what comes of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from foreserve.app import App
from foreserve.core import Outcome, OutcomeKind, Request
from foreserve.engines.forwarding import Forward
from foreserve.errors import ConfigError
from foreserve.fleet import outside as module
from foreserve.fleet.outside import Outside
from foreserve.fleet.outside_tell import Untold, Wish
from foreserve.running import Running
from foreserve.services.upstream import Upstream
from tests.engines.scripted_server import ScriptedServer, scripted


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 1.0)
    monkeypatch.setattr(module, "TICK_S", 0.05)


class Cloud:
    """Who can start and stop servers: here at fixed places, which are all down at first."""

    def __init__(self, servers: list[ScriptedServer]) -> None:
        self.servers = servers
        self.wishes: list[Wish] = []
        self.deaf = 0
        self.acts = True
        self.names: list[str] = []

    async def tell(self, wish: Wish) -> list[str]:
        self.wishes.append(wish)
        if self.deaf:
            self.deaf -= 1
            raise Untold("not now")
        if self.acts:
            for n, server in enumerate(self.servers):
                if n < wish.wanted and server._runner is None:
                    await server.start()
                elif n >= wish.wanted and server._runner is not None:
                    assert server.running == 0, "stopped while it worked"
                    await server.stop()
        return self.names

    @property
    def told(self) -> list[int]:
        return [wish.wanted for wish in self.wishes]


@asynccontextmanager
async def fleet(
    places: int = 3, up: int = 0, bounds: tuple[int, int] = (1, 3), listed: int | None = None, start: bool = True
) -> AsyncIterator[tuple[Cloud, Outside, Running]]:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(scripted()) for _ in range(places)]
        for server in servers[up:]:
            await server.stop()
        cloud = Cloud(servers)
        urls = [server.url for server in servers[:listed]]
        scaling = {"command": ["true"], "every_s": 1000.0}  # the test decides, not the policy
        words: dict[str, Any] = {"replicas": bounds, "scaling": scaling, "probe_limit_s": 2.0}
        running = App(state={"history": False}, m=Upstream(urls, model="m", **words)).run()
        outside = running.outside["m"]
        outside._teller = cloud
        task = asyncio.create_task(running.start())
        try:
            if start:
                await task
                await until(lambda: outside._wanted is not None)
            yield cloud, outside, running
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
            await running.stop(1.0)
            running.ledger.check(idle=True)


async def until(what: Callable[[], Any], limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def ask(running: Running, name: str) -> Outcome:
    body = Forward(method="POST", path="/v1/chat/completions", body=b'{"model": "m"}')
    now = asyncio.get_running_loop().time()
    stream = running.services["m"].submit(Request(id=name, service="m", payload=body, arrival=now))
    async for _ in stream:
        pass
    assert stream.outcome is not None
    return stream.outcome


def ready(running: Running) -> int:
    return len(running.services["m"].replicas.ready)


def phases(outside: Outside) -> list[str]:
    return [view.phase for view in outside.views(asyncio.get_running_loop().time())]


async def test_servers_that_run_already_are_used_and_nothing_is_told() -> None:
    async with fleet(up=2) as (cloud, outside, running):
        assert ready(running) == 2
        await asyncio.sleep(0.3)
        assert (cloud.told, phases(outside)) == ([], ["ready", "ready"])


async def test_up_is_told_at_once_and_used_when_it_is_there() -> None:
    async with fleet(up=1) as (cloud, outside, running):
        outside.why = "more is coming"
        outside.scale(3)
        outside.scale(3)
        assert phases(outside) == ["ready", "starting", "starting"]
        await until(lambda: ready(running) == 3)
        assert cloud.told == [3]
        assert (cloud.wishes[0].current, cloud.wishes[0].why) == (1, "more is coming")
        assert outside.start_s > 0


async def test_down_is_told_only_when_the_last_ones_have_finished() -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.8)
        return await cloud.servers[0].answer(request)

    async with fleet(up=3) as (cloud, outside, running):
        for server in cloud.servers:
            server.script = slow
        work = [asyncio.create_task(ask(running, f"r{n}")) for n in range(6)]
        await until(lambda: all(server.running == 2 for server in cloud.servers))
        outside.scale(1)
        assert phases(outside) == ["ready", "isolated", "isolated"]
        await asyncio.sleep(0.2)
        assert cloud.told == []
        assert {(await one).kind for one in work} == {OutcomeKind.DONE}
        await until(lambda: cloud.told)
        assert cloud.told == [1]
        assert cloud.wishes[0].used == (cloud.servers[0].url,)
        assert cloud.wishes[0].unused == (cloud.servers[1].url, cloud.servers[2].url)
        await asyncio.sleep(0.2)
        assert phases(outside) == ["ready"]


async def test_one_that_is_wanted_again_while_it_finishes_is_kept_and_nothing_is_told() -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.6)
        return await cloud.servers[0].answer(request)

    async with fleet(places=2, up=2, bounds=(1, 2)) as (cloud, outside, running):
        for server in cloud.servers:
            server.script = slow
        work = [asyncio.create_task(ask(running, f"r{n}")) for n in range(2)]
        await until(lambda: all(server.running for server in cloud.servers))
        outside.scale(1)
        await asyncio.sleep(0.1)
        outside.scale(2)
        assert phases(outside) == ["ready", "ready"]
        assert {(await one).kind for one in work} == {OutcomeKind.DONE}
        await asyncio.sleep(0.2)
        assert cloud.told == []


async def test_what_is_not_heard_is_told_again_under_the_same_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BACKOFF_S", 0.1)
    async with fleet(up=1) as (cloud, outside, running):
        cloud.deaf = 2
        outside.scale(2)
        await until(lambda: outside.problem)
        assert outside.problem == "not now"
        await until(lambda: ready(running) == 2)
        assert cloud.told == [2, 2, 2]
        assert len({wish.id for wish in cloud.wishes}) == 1
        assert outside.problem == ""


async def test_what_does_not_come_true_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPEAT_S", 0.3)
    async with fleet(up=1) as (cloud, outside, running):
        cloud.acts = False
        outside.scale(2)
        await until(lambda: len(cloud.told) == 2)
        cloud.acts = True
        await until(lambda: ready(running) == 2)
        assert {wish.id for wish in cloud.wishes} == {cloud.wishes[0].id}


async def test_servers_that_are_named_in_return_join_up_to_the_most() -> None:
    async with fleet(places=4, up=1, listed=1) as (cloud, outside, running):
        cloud.acts = False
        cloud.names = [cloud.servers[1].url, "nonsense", cloud.servers[0].url + "/v1", cloud.servers[2].url]
        cloud.names.append(cloud.servers[3].url)
        outside.scale(3)
        await until(lambda: cloud.told)
        assert phases(outside) == ["ready", "starting", "starting"]
        for server in cloud.servers[1:]:
            await server.start()
        await until(lambda: ready(running) == 3)
        assert [seat.spec.options["url"] for seat in running.services["m"].replicas.seats] == [
            server.url for server in cloud.servers[:3]
        ]


async def test_named_servers_are_forgotten_when_they_are_of_no_use_or_do_not_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REPEAT_S", 0.5)
    async with fleet(places=3, up=2, listed=1) as (cloud, outside, running):
        cloud.acts = False
        replicas = running.services["m"].replicas

        def known() -> list[int]:
            urls = [server.url for server in cloud.servers]
            return [urls.index(str(seat.spec.options["url"])) for seat in replicas.seats]

        cloud.names = [cloud.servers[1].url]
        outside.scale(2)
        await until(lambda: ready(running) == 2)
        cloud.names = []
        outside.scale(1)
        await until(lambda: cloud.told[-1] == 1)
        await until(lambda: known() == [0])
        assert cloud.wishes[-1].unused == (cloud.servers[1].url,)
        cloud.names = [cloud.servers[1].url]
        outside.scale(2)
        await until(lambda: ready(running) == 2)
        cloud.names = [cloud.servers[2].url]
        await cloud.servers[2].start()
        await cloud.servers[1].stop()
        await until(lambda: known() == [0, 2] and ready(running) == 2)
        assert cloud.wishes[-1].used == (cloud.servers[0].url,)
        # A place that was listed stays one.
        await cloud.servers[0].stop()
        await until(lambda: ready(running) == 1)
        await asyncio.sleep(1.2)
        assert known() == [0, 2]


async def test_none_is_up_at_the_start_and_the_least_are_asked_for() -> None:
    async with fleet(up=0, bounds=(2, 3), start=False) as (cloud, _, running):
        await until(lambda: ready(running) == 2)
        assert cloud.told == [2]


async def test_from_none_the_first_request_waits_for_a_server() -> None:
    async with fleet(up=0, bounds=(0, 2)) as (cloud, outside, running):
        assert phases(outside) == []
        outcome = await ask(running, "first")
        assert (outcome.kind, cloud.told) == (OutcomeKind.DONE, [1])
        assert (cloud.wishes[0].used, cloud.wishes[0].unused) == ((cloud.servers[0].url,), ()), "one had no server ever"
        outside.scale(0)
        await until(lambda: cloud.told == [1, 0])
        await until(lambda: cloud.servers[0]._runner is None)
        assert (await ask(running, "second")).kind is OutcomeKind.DONE
        assert cloud.told == [1, 0, 1]
        assert [wish.unused for wish in cloud.wishes[1:]] == [(cloud.servers[0].url,), ()]


async def test_from_none_what_waits_is_not_sent_to_a_server_that_still_loads() -> None:
    async with fleet(up=0, bounds=(0, 2)) as (cloud, _, running):
        cloud.servers[0].loading = True
        asked = [asyncio.create_task(ask(running, f"r{n}")) for n in range(5)]
        await until(lambda: len(cloud.servers[0].probes) >= 2)
        assert not cloud.servers[0].seen
        cloud.servers[0].loading = False
        assert {(outcome.kind, outcome.attempt) for outcome in await asyncio.gather(*asked)} == {(OutcomeKind.DONE, 0)}


async def test_a_server_that_was_asked_for_and_never_came_is_told_as_unused() -> None:
    async with fleet(up=0, bounds=(0, 2)) as (cloud, outside, _):
        cloud.acts = False
        outside.scale(1)
        await until(lambda: cloud.told == [1])
        outside.scale(0)
        await until(lambda: cloud.told == [1, 0])
        assert cloud.wishes[1].unused == (cloud.servers[0].url,)


async def test_load_makes_a_real_command_start_a_server(tmp_path: Path) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.2)
        return await one.answer(request)

    wanted = tmp_path / "wanted"
    script = f"import os; open({str(wanted)!r}, 'a').write(os.environ['FORESERVE_WANTED'] + ' ')"
    async with scripted() as one, scripted() as two:
        await two.stop()
        one.script = two.script = slow
        scaling = {"command": [sys.executable, "-c", script], "every_s": 0.2}
        kind = Upstream([one.url, two.url], model="m", max_running=1, replicas=(1, 2), scaling=scaling)
        running = App(state={"history": False}, m=kind).run()
        await running.start()
        work = [asyncio.create_task(ask(running, f"r{n}")) for n in range(40)]
        await until(wanted.exists)
        await two.start()
        assert {(await one).kind for one in work} == {OutcomeKind.DONE}
        assert wanted.read_text().split()[0] == "2"
        assert two.seen
        await running.stop(1.0)
        running.ledger.check(idle=True)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"replicas": (1, 2)}, "nobody starts servers"),
        ({"replicas": (1, 2), "scaling": {"command": ["x"], "webhook": "http://h"}}, "one of them"),
        ({"replicas": (0, 2), "scaling": {"command": ["x"]}, "urls": []}, "names no server"),
    ],
)
def test_what_cannot_be_scaled_is_refused(words: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Upstream(**{"urls": ["http://h"]} | words)
