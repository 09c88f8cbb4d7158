"""Scaling of whole services on the virtual clock: from none and back, over a restart, and on a shared machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from foreserve.app import App
from foreserve.core import OutcomeKind, Request
from foreserve.dispatch.stream import Stream
from foreserve.engines.generation import Generate
from foreserve.errors import ConfigError
from foreserve.fleet.inline import InlineLauncher
from foreserve.foresight import demand
from foreserve.loads import LoadStore, decisions, loads_file
from foreserve.running import Running
from foreserve.scaling import ScalingDecision
from foreserve.services.llm import LLM
from foreserve.services.upstream import Upstream
from foreserve.simulation import clock
from tests.fleet.test_capacity import serve


def llm(**words: Any) -> LLM:
    engine = {"output_tokens": [40, 60], "decode_s": 0.02, "start_s": 3.0, **words.pop("engine", {})}
    scaling = {"every_s": 1.0, "window_s": 10.0, "idle_s": 20.0, "forecaster": "last_value", **words.pop("scaling", {})}
    if isinstance(words.get("replicas"), int):
        scaling = {}
    words = {"replicas": (0, 3), "launcher": "inline", "max_running": 4, "engine_options": engine, **words}
    return LLM("simulated", scaling=scaling, **words)


def played(services: dict[str, LLM], act: Callable[[Running], Awaitable[None]], **words: Any) -> list[ScalingDecision]:
    told: list[ScalingDecision] = []

    async def play() -> None:
        running = App(**{"state": {"history": False}, **words}, **services).run()  # type: ignore[arg-type]
        running.scaled.append(told.append)
        await running.start()
        await act(running)
        await running.stop(30.0)
        running.ledger.check(idle=True)

    clock.run(play(), epoch=1_000_000.0)
    return told


def ask(running: Running, name: str = "chat", count: int = 1) -> list[Stream]:
    now = asyncio.get_running_loop().time()
    payload = Generate(prompt=list(range(20)), max_tokens=100)
    ids = [f"{name}-{now}-{n}" for n in range(count)]
    return [running.services[name].submit(Request(id=i, service=name, payload=payload, arrival=now)) for i in ids]


async def ended(streams: list[Stream]) -> list[OutcomeKind]:
    for stream in streams:
        async for _ in stream:
            pass
    return [stream.outcome.kind for stream in streams if stream.outcome is not None]


async def rain(running: Running, seconds: int, count: int) -> list[Stream]:
    """So many come at once every second."""
    streams = []
    for _ in range(seconds):
        streams += ask(running, count=count)
        await asyncio.sleep(1.0)
    return streams


def stands(running: Running, name: str = "chat") -> list[str]:
    return [replica.state.value for replica in running.services[name].replicas.all]


def test_from_none_to_one_and_back():
    async def act(running: Running) -> None:
        assert stands(running) == []
        first = ask(running)
        await asyncio.sleep(0.1)
        assert stands(running) == ["starting"], "nobody waits for the next look"
        assert await ended(first) == [OutcomeKind.DONE]
        await asyncio.sleep(15.0)
        assert stands(running) == ["ready"]
        await asyncio.sleep(30.0)
        assert stands(running) == []
        assert await ended(ask(running)) == [OutcomeKind.DONE]

    told = played({"chat": llm()}, act)
    changes = [(each.active, each.granted) for each in told if each.active != each.granted]
    assert changes == [(0, 1), (1, 0), (0, 1)]
    assert told[0].why != told[1].why
    assert any("nothing has come for" in each.why for each in told)


def test_a_queue_adds_replicas_and_quiet_takes_them_away_and_nothing_is_lost():
    async def act(running: Running) -> None:
        streams = await rain(running, 60, 10)
        assert len(stands(running)) == 3
        assert set(await ended(streams)) == {OutcomeKind.DONE}
        await asyncio.sleep(60.0)
        assert len(stands(running)) == 1

    told = played({"chat": llm(replicas=(1, 3), queue={"max_waiting": 500, "max_wait_s": 900.0})}, act)
    ups = [each for each in told if each.granted > each.active]
    assert len(ups) <= 2, "one overload adds what it needs once"
    assert all(each.why for each in told)


def test_two_services_take_turns_on_a_machine_with_room_for_one():
    async def act(running: Running) -> None:
        assert await ended(ask(running, "a")) == [OutcomeKind.DONE]
        assert stands(running, "a") == ["ready"]
        b = ask(running, "b")
        await asyncio.sleep(0.5)
        assert len(stands(running, "a")) + len(stands(running, "b")) == 1
        assert await ended(b) == [OutcomeKind.DONE]
        assert stands(running, "a") == []

    most = 0

    async def watched(running: Running) -> None:
        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, len(stands(running, "a")) + len(stands(running, "b")))
                await asyncio.sleep(0.05)

        task = asyncio.create_task(watch())
        await act(running)
        task.cancel()

    told = played({"a": llm(), "b": llm()}, watched, machine={"replicas": 1})
    assert most == 1
    assert any(each.shared == "1 as soon as a has given up what it holds" for each in told)


def test_what_was_decided_and_learned_is_kept(tmp_path: Path):
    async def play() -> None:
        for start in range(2):
            running = App(
                chat=llm(replicas=(1, 3), engine={"decode_s": 0.001, "start_s": 0.1}), state={"folder": str(tmp_path)}
            ).run()
            await running.start()
            await asyncio.sleep(0.05)  # the first look
            scaling = running.services["chat"].scaling
            assert scaling is not None
            known = scaling.scaler.capacity.state().mixes
            assert bool(known) == bool(start), "what one replica can do is known again"
            if not start:
                serve(scaling.scaler.capacity, rate=4.0, running=8)
            await running.stop(5.0)

    asyncio.run(play())
    kept = decisions(loads_file(tmp_path), 10)
    assert kept
    assert kept[0].service == "chat"


def test_what_one_can_do_outlives_a_server_that_is_killed(tmp_path: Path):
    async def play() -> None:
        chat = llm(
            replicas=(1, 3), engine={"decode_s": 0.001, "start_s": 0.1}, scaling={"every_s": 0.05, "window_s": 0.1}
        )
        running = App(chat=chat, state={"folder": str(tmp_path)}).run()
        await running.start()
        scaling = running.services["chat"].scaling
        assert scaling is not None
        assert running.loads is not None
        serve(scaling.scaler.capacity, rate=4.0, running=8)
        await asyncio.sleep(0.3)
        assert running.loads.noted("chat", "capacity") is not None, "it has not been stopped"
        await running.stop(5.0)

    asyncio.run(play())


def test_what_cannot_be_read_is_learned_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def play() -> None:
        running = App(chat=llm(replicas=(1, 3), engine={"start_s": 0.1}), state={"folder": str(tmp_path)}).run()
        store = running.loads = LoadStore.open(tmp_path, {})
        store.close()
        store.path.unlink()
        store.path.mkdir()
        scaling = running.services["chat"].scaling
        assert scaling is not None
        await scaling.prepare(store)
        await scaling.stop()

    asyncio.run(play())
    assert "what one replica can do cannot be read; it is learned anew" in caplog.text


def test_what_is_turned_away_is_load_and_is_done_with(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demand, "MOST_OPEN", 4)

    async def act(running: Running) -> None:
        service = running.services["chat"]
        assert service.scaling is not None
        (stream,) = ask(running)
        service.dispatcher.unavailable = "it rests"
        now = asyncio.get_running_loop().time()
        for n in range(9):
            assert service.turn_away(Request(id=f"no-{n}", service="chat", payload=None, arrival=now)) is not None
        service.dispatcher.unavailable = None
        assert service.scaling.load.recent(now)["requests"] * 3.0 == pytest.approx(10.0)
        await ended([stream])
        assert stream.outcome is not None
        told = service.scaling.load.recent(now)
        assert "seconds" in told, "the one that was served was not forgotten for those that were not"

    played({"chat": llm(replicas=(1, 3))}, act)


def test_who_waits_for_a_first_replica_that_never_comes_was_load(monkeypatch: pytest.MonkeyPatch):
    async def act(running: Running) -> None:
        service = running.services["chat"]
        assert service.scaling is not None
        now = asyncio.get_running_loop().time()
        request = Request(id="no", service="chat", payload=None, arrival=now, deadline=now + 1.0)
        assert await service.until_known(request) is not None
        assert service.scaling.load.recent(now)["requests"] > 0.0

    played({"chat": llm()}, act)


def test_a_service_that_there_would_never_be_room_for_is_refused():
    with pytest.raises(ConfigError, match=r"machine\.replicas is 1, .* no room is left for one of b"):
        played({"a": llm(replicas=1), "b": llm(replicas=(0, 2))}, ended_at_once, machine={"replicas": 1})


def test_servers_take_no_room_of_this_machine_in_a_simulation_either():
    async def play() -> None:
        scaling = {"command": ["true"]}
        up = Upstream(["http://127.0.0.1:9"], replicas=(1, 4), scaling=scaling)  # type: ignore[arg-type]
        running = App(up=up, chat=llm(), machine={"replicas": 1}).run(InlineLauncher())
        scaled = {name: running.services[name].scaling for name in ("up", "chat")}
        shared = {name: each is not None and each.scaler._shares is not None for name, each in scaled.items()}
        assert shared == {"up": False, "chat": True}

    clock.run(play(), epoch=1_000_000.0)


def test_leasts_that_the_machine_has_no_room_for_are_refused():
    with pytest.raises(ConfigError, match=r"machine\.replicas is 2"):
        played({"a": llm(replicas=2), "b": llm(replicas=(1, 2))}, ended_at_once, machine={"replicas": 2})


async def ended_at_once(running: Running) -> None:
    pass


def test_options_of_a_policy_are_checked_as_for_batch_policies():
    with pytest.raises(ConfigError, match=r"service 'a': scaling.policy_options.targets: unknown option.*'target'"):
        played({"a": llm(scaling={"policy_options": {"targets": 0.5}})}, ended_at_once)
    with pytest.raises(ConfigError, match=r"scaling.policy.*no scaling policy is called 'hybird'.*'hybrid'"):
        played({"a": llm(scaling={"policy": "hybird"})}, ended_at_once)


def test_decisions_are_the_same_for_the_same_load():
    async def act(running: Running) -> None:
        await ended(await rain(running, 30, 6))

    first, second = (played({"chat": llm()}, act) for _ in range(2))
    assert first == second
    assert len(first) > 2
