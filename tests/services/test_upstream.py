from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web

from foreserve.app import App
from foreserve.core import EngineInfo, OutcomeKind, Request
from foreserve.engines.forwarding import Body, Forward, Head
from foreserve.errors import ConfigError, ReplicaLost, UpstreamRefused
from foreserve.running import Running
from foreserve.services.upstream import UNBOUNDED, Upstream
from tests.engines.scripted_server import delta, event, hang, hang_up, scripted, streaming

CHAT = "/v1/chat/completions"


def asked(payload: Forward) -> Request:
    return Request(id="a", service="up", payload=payload, arrival=0.0)


def test_wrong_words_are_named() -> None:
    with pytest.raises(ConfigError, match=r"max_runing.*did you mean 'max_running'"):
        Upstream(["http://h"], max_runing=1)
    with pytest.raises(ConfigError, match="named twice"):
        Upstream("http://h", urls=["http://h"])
    with pytest.raises(ConfigError, match="http:// or https://"):
        Upstream("h:8000")
    with pytest.raises(ConfigError, match="urls"):
        Upstream()


def test_each_server_is_a_replica() -> None:
    kind = Upstream(["http://a", "http://b/v1"], model="m", max_running=3)
    assert [spec.options["url"] for spec in kind.engines()] == ["http://a", "http://b/v1"]
    assert {spec.options["max_running"] for spec in kind.engines()} == {3}
    observing = Upstream("http://a", observe=True, max_running=3)
    assert observing.engines()[0].options["max_running"] == UNBOUNDED
    assert observing.settings.queue.admission == "always"
    assert not observing.idempotent


def test_the_price_is_a_slot_and_a_guess_at_tokens() -> None:
    kind = Upstream("http://a")
    order = Forward(method="POST", path=CHAT, body=b"x" * 400)
    assert kind.price(asked(order)).cost == {"slots": 1.0}
    bounded = Forward(method="POST", path=CHAT, body=b"x" * 400, max_tokens=50)
    assert kind.price(asked(bounded)).cost == {"slots": 1.0, "kv_tokens": 150.0}
    kind.ready(EngineInfo(batching="continuous", capacity={"slots": 1}, facts={"context_tokens": 120, "models": ["m"]}))
    assert kind.price(asked(bounded)).cost["kv_tokens"] == 120.0
    assert kind.name_there("chat") == "m"
    assert 1024 < kind.events_bound(bounded) < kind.events_bound(order)


@pytest.mark.parametrize(
    ("urls", "words", "told"),
    [
        (["http://a", "http://b"], {}, True),
        (["http://a"], {}, False),
        (["http://a", "http://b"], {"placement": "round_robin"}, False),
    ],
)
async def test_how_a_conversation_begins_is_told_where_a_server_is_chosen_by_it(
    urls: list[str], words: dict[str, Any], told: bool
) -> None:
    kind = Upstream(urls, model="m", **words)
    said = [{"role": "system", "content": "x" * 700}, {"role": "user", "content": "hi"}]
    found = []
    for messages in (said, [*said, {"role": "assistant", "content": "y" * 900}, {"role": "user", "content": "z"}]):
        order = Forward(method="POST", path=CHAT, body=b"{}")
        about = await kind.about(order, msgspec.Raw(json.dumps(messages).encode()), None, "t")
        assert about is not None
        found.append(kind.price(Request(id="a", service="up", payload=order, arrival=0.0, about=about)).prefix)
    if not told:
        assert found == [None, None]
        return
    short, long = found
    assert short is not None
    assert long is not None
    assert short.blocks == long.blocks[: len(short.blocks)]
    assert len(long.blocks) > len(short.blocks) >= 2


@asynccontextmanager
async def served(*urls: str, **words: Any) -> AsyncIterator[Running]:
    words = {"queue": {"max_wait_s": 10.0}} | words
    running = App(state={"history": False}, m=Upstream(list(urls), model="m", **words)).run()
    await running.start()
    try:
        yield running
    finally:
        await running.stop(1.0)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def ask(name: str, **words: Any) -> Request:
    order = Forward(method="POST", path=CHAT, body=json.dumps({"model": "m"}).encode())
    return Request(id=name, service="m", payload=order, arrival=asyncio.get_running_loop().time(), **words)


async def test_a_request_goes_all_the_way_through_the_queue() -> None:
    async with scripted() as server, served(server.url) as running:
        server.script = streaming(event(delta(content="a")), event(b"[DONE]"))
        stream = running.services["m"].submit(ask("r1"))
        events = [answer async for answers in stream for answer in answers]
        assert isinstance(events[0], Head)
        assert b"".join(e.data for e in events if isinstance(e, Body)) == event(delta(content="a")) + event(b"[DONE]")
        assert stream.outcome is not None
        assert stream.outcome.kind is OutcomeKind.DONE
        running.ledger.check()


async def test_a_refusal_reaches_the_client_as_it_was() -> None:
    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(status=422, body=b"\xffno", content_type="text/odd")

    async with scripted() as server, served(server.url) as running:
        server.script = script
        outcome = await running.services["m"].submit(ask("r1")).settled()
        error = outcome.error()
        assert isinstance(error, UpstreamRefused)
        assert (error.upstream_status, error.body, error.content_type) == (422, b"\xffno", "text/odd")


async def test_back_pressure_of_one_server_sends_work_to_another() -> None:
    async def full(request: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": "0.1"})

    async with scripted() as one, scripted() as two, served(one.url, two.url, max_running=1) as running:
        one.script = full
        two.script = streaming(event(delta(content="a")), pause_s=0.02)
        outcomes = await asyncio.gather(*(running.services["m"].submit(ask(f"r{n}")).settled() for n in range(4)))
        done = [outcome for outcome in outcomes if outcome.kind is OutcomeKind.DONE]
        assert len(done) >= 2
        assert all(o.code == "upstream_refused" for o in outcomes if o not in done)


async def test_a_lost_server_costs_nothing_that_had_not_begun_and_comes_back() -> None:
    async with scripted() as one, scripted() as two, served(one.url, two.url, max_running=1) as running:
        service = running.services["m"]
        one.script = two.script = hang
        streams = [service.submit(ask(f"r{n}")) for n in range(2)]
        await asyncio.gather(one.busy.wait(), two.busy.wait())
        two.script = streaming(event(delta(content="a")))
        await one.stop()
        lost = [stream for stream in streams if stream.outcome is None]
        assert len(lost) == 2
        await until(lambda: service.dispatcher.view().waiting == 1)
        assert len(service.replicas.ready) == 1
        # The server that stays still hangs with its own; that one leaves, and the lost one takes its place.
        for stream in streams:
            if service.dispatcher._running.get(stream.id) is not None:
                stream.close()
        outcomes = [await stream.settled() for stream in streams]
        assert sorted(outcome.kind for outcome in outcomes) == [OutcomeKind.CANCELLED, OutcomeKind.DONE]
        assert max(outcome.attempt for outcome in outcomes) == 1
        one.script = one.answer
        await one.start()
        await until(lambda: len(service.replicas.ready) == 2)
        running.ledger.check()


async def test_what_a_restarted_server_refuses_while_it_loads_waits_for_it() -> None:
    # Nothing probes it, so it is given requests as soon as its health is well.
    async with scripted() as one, served(one.url, probe=False) as running:
        service = running.services["m"]
        one.loading = True
        stream = service.submit(ask("r1"))
        await until(lambda: len(one.seen) >= 3)
        one.loading = False
        outcome = await stream.settled()
        assert (outcome.kind, outcome.again) == (OutcomeKind.DONE, "server loading")
        assert outcome.attempt >= 3


async def test_a_server_that_never_ends_loading_is_not_tried_for_ever() -> None:
    async with scripted() as one, served(one.url, probe=False, queue={"max_wait_s": 1.5}) as running:
        one.loading = True
        stream = running.services["m"].submit(ask("r1"))
        outcome = await asyncio.wait_for(stream.settled(), 10)
        assert (outcome.kind, outcome.code) == (OutcomeKind.FAILED, "upstream_refused")
        assert f'the upstream server {one.url} answered 503, and says "Loading model"' in outcome.reason
        assert 3 <= len(one.seen) <= 6


async def test_a_rolling_restart_into_servers_that_load_loses_nothing() -> None:
    async with scripted() as one, scripted() as two, served(one.url, two.url) as running:
        service = running.services["m"]
        for n, server in enumerate((one, two)):
            await server.stop()
            server.loading = True
            await asyncio.sleep(1.2)  # so that it is missed once, which does not make it gone
            await server.start()
            asked = [service.submit(ask(f"r{n}.{k}")) for k in range(6)]
            await asyncio.sleep(1.5)
            server.loading = False
            assert {(await stream.settled()).kind for stream in asked} == {OutcomeKind.DONE}
            await until(lambda: len(service.replicas.ready) == 2)


async def test_an_answer_that_had_begun_is_not_run_again() -> None:
    async with scripted() as one, scripted() as two, served(one.url, two.url) as running:
        one.script = two.script = streaming(event(delta(content="a")), pause_s=0.05, then=hang_up)
        stream = running.services["m"].submit(ask("r1"))
        outcome = await stream.settled()
        assert outcome.kind is OutcomeKind.FAILED
        assert outcome.attempt == 0
        assert len(one.seen) + len(two.seen) == 1


async def test_a_server_that_is_down_refuses_at_once_and_says_why() -> None:
    async with scripted() as server, served(server.url) as running:
        service = running.services["m"]
        await server.stop()
        await until(lambda: service.dispatcher.unavailable is not None)
        outcome = await service.submit(ask("r1")).settled()
        assert outcome.code == "unavailable"
        assert "cannot be reached" in outcome.reason
        assert not isinstance(outcome.error(), ReplicaLost)
        await server.start()
        await until(lambda: service.ready)
        assert (await service.submit(ask("r2")).settled()).kind is OutcomeKind.DONE


async def test_our_order_reaches_the_server_in_the_body() -> None:
    async with scripted() as server, served(server.url, engine_priority=True) as running:
        for name in ("r1", "r2"):
            assert (await running.services["m"].submit(ask(name)).settled()).kind is OutcomeKind.DONE
        assert [json.loads(body).get("priority") for _, body in server.seen] == [1, 2]
    async with scripted() as server, served(server.url, engine_priority=True, policy="fcfs") as running:
        assert (await running.services["m"].submit(ask("r1")).settled()).kind is OutcomeKind.DONE
        assert "priority" not in json.loads(server.seen[0][1])


def test_the_engine_is_told_priorities_only_where_that_was_asked_for_and_never_when_observing() -> None:
    def priority(**words: Any) -> Any:
        return Upstream("http://gpu:1", **words).engines()[0].options["priority"]

    assert priority(engine_priority=True) is True
    assert priority() is False
    assert priority(engine_priority=True, observe=True) is False
