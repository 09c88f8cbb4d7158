from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from foreserve.app import App
from foreserve.core import Outcome, OutcomeKind, Request
from foreserve.engines.forwarding import Forward
from foreserve.errors import BadRequest, Forbidden, NotFound
from foreserve.running import Running
from foreserve.services.base import Service
from foreserve.services.joining import allowed, join, leave, servers
from foreserve.services.upstream import Upstream
from tests.engines.scripted_server import ScriptedServer, scripted

QUICK = {"probe_every_s": 0.3, "probe_limit_s": 0.5, "probe_busy_s": 0.5}
NOWHERE = "http://127.0.0.1:1"


@asynccontextmanager
async def upstream(*urls: str, **words: Any) -> AsyncIterator[tuple[Service, Running]]:
    running = App(state={"history": False}, m=Upstream(list(urls), **{"model": "m"} | QUICK | words)).run()
    await running.start()
    try:
        yield running.services["m"], running
    finally:
        await running.stop(1.0)
        running.ledger.check(idle=True)


async def ask(service: Service, count: int) -> Sequence[Outcome]:
    """So many requests at once, until all have ended."""
    body = Forward(method="POST", path="/v1/chat/completions", body=b'{"model": "m"}')
    now = asyncio.get_running_loop().time()
    ask.n += count  # type: ignore[attr-defined]
    streams = [
        service.submit(Request(id=f"r{ask.n - i}", service="m", payload=body, arrival=now))  # type: ignore[attr-defined]
        for i in range(count)
    ]
    outcomes = []
    for stream in streams:
        async for _ in stream:
            pass
        assert stream.outcome is not None
        outcomes.append(stream.outcome)
    return outcomes


ask.n = 0  # type: ignore[attr-defined]


async def until(what: Any, limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_server_joins_a_running_service_and_gets_work() -> None:
    async with scripted() as one, scripted() as two, upstream(one.url) as (service, _):
        status, new = await join(service, two.url + "/v1/")
        assert (status.url, status.state, new) == (two.url, "ready", True)
        assert len(two.probes) == 1
        again, new = await join(service, two.url)
        assert (again, new) == (status, False)
        assert {o.kind for o in await ask(service, 10)} == {OutcomeKind.DONE}
        assert one.seen
        assert two.seen
        assert [s.url for s in servers(service)] == [one.url, two.url]


async def test_one_that_leaves_finishes_what_it_runs_and_gets_no_more() -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.5)
        return await one.answer(request)

    async with scripted() as one, scripted() as two, upstream(one.url, two.url) as (service, _):
        await until(lambda: len(service.replicas.ready) == 2)
        one.script = two.script = slow
        first = asyncio.create_task(ask(service, 6))
        await until(lambda: len(one.seen) == len(two.seen) == 3)
        assert leave(service, one.url).state == "leaving"
        assert {s.url: s.state for s in servers(service)} == {one.url: "leaving", two.url: "ready"}
        second = asyncio.create_task(ask(service, 4))
        outcomes = [*await first, *await second]
        assert {(o.kind, o.attempt) for o in outcomes} == {(OutcomeKind.DONE, 0)}
        assert (len(one.seen), len(two.seen)) == (3, 7)
        await until(lambda: len(servers(service)) == 1)
        with pytest.raises(NotFound, match=f"there are: {two.url}"):
            leave(service, one.url)
        # It may come back.
        assert (await join(service, one.url))[0].state == "ready"


async def test_servers_join_and_leave_under_load_and_nothing_is_lost() -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.03)
        return await fleet[0].answer(request)

    async with scripted() as a, scripted() as b, scripted() as c, upstream(a.url, max_running=2) as (service, running):
        fleet: list[ScriptedServer] = [a, b, c]
        for server in fleet:
            server.script = slow
        load = [asyncio.create_task(ask(service, 60)) for _ in range(3)]
        for _ in range(2):
            await join(service, b.url)
            await join(service, c.url)
            leave(service, a.url)
            await asyncio.sleep(0.1)
            await join(service, a.url)
            leave(service, b.url)
            leave(service, c.url)
            await asyncio.sleep(0.1)
        outcomes = [outcome for each in load for outcome in await each]
        assert len(outcomes) == 180
        assert {o.kind for o in outcomes} == {OutcomeKind.DONE}
        assert sum(len(server.seen) for server in fleet) == 180, "each was answered once"
        running.ledger.check(idle=True)


async def test_the_last_one_leaves_and_another_comes() -> None:
    async with scripted() as one, scripted() as two, upstream(one.url) as (service, _):
        leave(service, one.url)
        await until(lambda: not servers(service))
        (outcome,) = await ask(service, 1)
        assert (outcome.kind, outcome.code) == (OutcomeKind.FAILED, "unavailable")
        await join(service, two.url)
        (outcome,) = await ask(service, 1)
        assert outcome.kind is OutcomeKind.DONE


async def test_what_is_not_fit_does_not_join_and_is_forgotten() -> None:
    async with scripted() as one, scripted(models=("other",)) as two, scripted() as hung, upstream(one.url) as (at, _):
        hung.hangs = True
        with pytest.raises(BadRequest, match="has no model 'm'; it has other"):
            await join(at, two.url)
        with pytest.raises(BadRequest, match="cannot be reached"):
            await join(at, NOWHERE)
        with pytest.raises(BadRequest, match=r"does not join: .*no answer to a request for one token"):
            await join(at, hung.url)
        two.health = 503
        with pytest.raises(BadRequest, match="answers 503"):
            await join(at, two.url)
        await until(lambda: [s.url for s in servers(at)] == [one.url])


async def test_one_that_hung_and_is_started_anew_says_why() -> None:
    async with scripted() as one, scripted() as two:
        quick = {"probe_every_s": 0.2, "probe_limit_s": 0.3, "probe_busy_s": 0.3}
        async with upstream(one.url, two.url, **quick) as (service, _):
            two.hangs = True
            await until(lambda: "hangs" in servers(service)[1].reason and servers(service)[1].state == "starting")
            two.hangs = False
            await until(lambda: servers(service)[1].state == "ready")
            assert [status.reason for status in servers(service)] == ["", ""]


async def test_none_join_while_only_observing() -> None:
    async with scripted() as one, upstream(one.url, observe=True) as (service, _):
        with pytest.raises(Forbidden, match="only observing"):
            await join(service, NOWHERE)
        assert not one.probes


@pytest.mark.parametrize(
    "url",
    ["", "ftp://h", "h:8000", "http://", "http://[::1", "http://u:p@h", "http://h/?x=1", "http://h/#y", "x" * 9999],
)
async def test_what_is_no_address(url: str) -> None:
    with pytest.raises(BadRequest):
        await allowed(url, None)


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/", "http://[fe80::1]:80", "http://0.0.0.0:1", "http://[::ffff:169.254.169.254]"]
)
async def test_link_local_addresses_may_not_join(url: str) -> None:
    with pytest.raises(Forbidden, match="may not join"):
        await allowed(url, None)
    with pytest.raises(Forbidden, match="may not join"):
        await allowed(url, ["*"])


async def test_who_may_join_can_be_told() -> None:
    assert await allowed("http://10.1.2.3:8000/v1", ["10.0.0.0/8"]) == "http://10.1.2.3:8000"
    assert await allowed("http://LOCALHOST:8000", ["local*"]) == "http://LOCALHOST:8000"
    assert await allowed("http://localhost:8000", ["127.0.0.0/8", "::1/128"])
    assert await allowed("http://169.254.1.2", ["169.254.1.0/24"])
    with pytest.raises(Forbidden, match=r"11\.0\.0\.1 may not join; valid: 10\.0\.0\.0/8"):
        await allowed("http://11.0.0.1", ["10.0.0.0/8"])
    with pytest.raises(Forbidden, match="valid: none"):
        await allowed("http://10.0.0.1", [])
