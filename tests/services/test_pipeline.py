"""Pipelines over services: children of one request, on its terms, counted once, ended with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import foreserve as fs
from foreserve.clock import now
from foreserve.core import Outcome, OutcomeKind, Request
from foreserve.errors import BadRequest, ClientGone, ConfigError, EngineFailed, Expired, Shed, TooLarge, Unavailable
from foreserve.running import Running
from foreserve.services.pipeline import ServedPipeline
from tests.gateway import scripted
from tests.services.pipeline_app import answer, app, chat, checked, echoes, failing, repeat


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    running = app().run()
    await running.start()
    yield running
    await running.stop(1.0)
    running.ledger.check(idle=True)


def request(id: str = "r", **words: Any) -> Request:
    return Request(id=id, service="checked", payload=None, arrival=now(), **words)


def outcomes(running: Running) -> list[Outcome]:
    found: list[Outcome] = []
    running.observers.append(found.append)
    return found


async def test_services_are_stages(running: Running):
    told = outcomes(running)
    run = running.pipelines["checked"].submit(
        request(tenant="t", deadline=now() + 20), {"script": "say a bc\n|say d"}, listens=False
    )
    assert await run.result() == {
        "answer": "a bc\nd",
        "claims": [
            {"claim": "a bc!", "counted": {"letters": 3}, "halves": ["a ", "bc"]},
            {"claim": "d!", "counted": {"letters": 1}, "halves": ["", "d"]},
        ],
    }
    root = told[-1]
    children = told[:-1]
    assert (root.id, root.service, root.kind, root.parent) == ("r", "checked", OutcomeKind.DONE, None)
    assert len(children) == 7
    assert {child.parent for child in children} == {"r"}
    assert {child.tenant for child in children} == {"t"}
    assert root.usage["output_tokens"] == sum(child.usage.get("output_tokens", 0) for child in children)
    ledger = running.ledger
    assert (ledger.entered[False], ledger.entered[True]) == (1, 7)
    status = running.pipelines["checked"].status()
    assert status.services == ["chat", "count_letters", "halves"]
    assert status.stages["answer"].calls == 1
    assert status.maps["check"].children == 2.0


async def test_a_stage_begins_on_the_first_piece_of_an_answer(running: Running):
    run = running.pipelines["checked"].submit(request(), {"script": "say a\n|hang"}, listens=True)
    async for event in run.each():
        if event.name == "claims" and hasattr(event, "value"):
            assert event.value["claim"] == "a!"
            break
    scripted.cancelled.clear()
    run.cancel("enough")
    with pytest.raises(ClientGone, match="enough"):
        await run.result()
    async with asyncio.timeout(5):
        while "r-1" not in scripted.cancelled:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert running.ledger.ended(OutcomeKind.CANCELLED) == 1
    assert running.ledger.ended(OutcomeKind.CANCELLED, child=True) == 1


async def test_a_failure_ends_the_request_and_what_works_for_it(running: Running):
    run = running.pipelines["failing"].submit(request(), {"text": "a"}, listens=False)
    with pytest.raises(EngineFailed, match="as it must"):
        await run.result()
    await asyncio.sleep(0.05)
    assert running.ledger.ended(OutcomeKind.FAILED) == 1
    assert not running.ledger.open


async def test_functions_are_fed_while_they_run(running: Running):
    run = running.pipelines["fed"].submit(request(), {"script": "say a bc,d\n|say e f|hang"}, listens=True)
    seen: list[Any] = []
    async for event in run.each():
        if hasattr(event, "value"):
            seen.append(event.value)
        if len(seen) == 4:
            break
    assert sorted(map(str, seen)) == ["A", "BC,D", "E", "[5, ['a bc', 'd']]"]
    run.cancel()
    run = running.pipelines["fed"].submit(request("s"), {"script": "say a bc,d\n\n|say e f"}, listens=False)
    assert await run.result() == {"sums": [[5, ["a bc", "d"]], [2, ["e f"]]], "echoes": ["A", "BC,D", "E", "F"]}
    run = running.pipelines["fed"].submit(request("t"), {"script": "length"}, listens=False)
    assert await run.result() == {"sums": [], "echoes": []}


async def test_what_a_function_is_fed_is_bounded(running: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("foreserve.dispatch.dispatcher.MOST_FED", 4)
    run = running.pipelines["fed"].submit(request(), {"script": "say a\n|say b c d e f g\n|hang"}, listens=False)
    with pytest.raises(TooLarge, match="its input came in more than 4 parts, the most that one call is fed"):
        await run.result()
    running.ledger.check(idle=True)
    run = running.pipelines["fed"].submit(request("s"), {"script": "say a\n|say b"}, listens=False)
    assert (await run.result())["echoes"] == ["A", "B"]


async def test_a_deadline_is_that_of_all_children(running: Running):
    run = running.pipelines["checked"].submit(request(deadline=now() + 0.2), {"script": "hang"}, listens=False)
    with pytest.raises(Expired):
        await run.result()
    assert running.ledger.ended(OutcomeKind.EXPIRED) == 1


async def test_more_than_may_run_are_refused(running: Running):
    settings = fs.pipeline(max_running=1)(checked.code)
    served = ServedPipeline("few", settings, running.services, running.ledger, lambda outcome: None)
    first = served.submit(request("a"), {"script": "hang"}, listens=False)
    with pytest.raises(Shed, match="1 requests of 'few' run") as refused:
        served.submit(request("b"), {"script": "hang"}, listens=False)
    assert refused.value.retry_after is not None
    first.cancel()
    assert running.ledger.ended(OutcomeKind.SHED) == 1


async def test_what_runs_is_let_finish_and_nothing_more_is_taken(running: Running):
    served = running.pipelines["checked"]
    short = served.submit(request("a"), {"script": "wait 0.05|say x"}, listens=False)
    long = served.submit(request("b"), {"script": "hang"}, listens=False)
    draining = asyncio.ensure_future(served.drain(0.3))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="stopping"):
        served.submit(request("c"), {"script": "say x"}, listens=False)
    await draining
    assert short.value()["answer"] == "x"
    with pytest.raises(ClientGone, match="the server is stopping"):
        long.value()


async def test_only_the_latest_timelines_are_kept(running: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("foreserve.services.pipeline.KEPT", 2)
    served = running.pipelines["checked"]
    for id in ("a", "b", "c"):
        await served.submit(request(id), {"script": "say x"}, listens=False).result()
    assert list(served.timelines) == ["b", "c"]
    spans = served.timelines["c"].spans
    assert {(span.name, span.ancestry) for span in spans} == {
        ("answer", ()),
        ("repeat", (("check", 0),)),
        ("count_letters", (("check", 0),)),
        ("halves", (("check", 0),)),
    }
    assert spans[0].facts["service"] == "chat"
    assert spans[0].facts["replica"]


def test_an_app_serves_what_its_pipelines_ask():
    with pytest.raises(ConfigError, match="stage 'answer': the app does not serve this ScriptedLLM"):
        fs.App(failing=failing, other=scripted.ScriptedLLM())

    @fs.pipeline
    def named(text: str) -> Any:
        return fs.ask("chat", "{text}")(text)

    with pytest.raises(ConfigError, match="the app serves nothing called 'chat'; did you mean 'chats'"):
        fs.App(named=named, chats=chat)

    with pytest.raises(ConfigError, match="'chat' is a function, not a llm"):
        fs.App(named=named, chat=fs.function(outer))

    @fs.pipeline
    def by_itself(text: str) -> Any:
        return echoes(echoes(answer(text).split(fs.words)))

    with pytest.raises(ConfigError, match="'echoes' is fed a stream that it has made itself"):
        fs.App(by_itself=by_itself, chat=chat, echoes=echoes)
    assert list(fs.App(named=named, chat=chat).pipelines) == ["named"]


def outer(text: str) -> str:
    return text


def test_prompts_are_checked_when_they_are_written():
    with pytest.raises(ConfigError, match="unknown word 'max_token'; did you mean 'max_tokens'"):
        fs.ask(chat, "{text}", max_token=3)
    with pytest.raises(ConfigError, match="Expected `int"):
        fs.ask(chat, "{text}", max_tokens="many")
    with pytest.raises(ConfigError, match="has no field; write one where the input goes"):
        fs.ask(chat, "say something")
    with pytest.raises(ConfigError, match=r"`\{a.b\}` is no name"):
        fs.ask(chat, "{a.b}")
    with pytest.raises(ConfigError, match="the prompt cannot be read"):
        fs.ask(chat, "{text")
    with pytest.raises(ConfigError, match="int is no model"):
        fs.ask(5)  # type: ignore[arg-type]
    assert [takes.name for takes in fs.ask(chat, "{b} {a} {b}", system="{c}").takes] == ["c", "b", "a"]
    assert repeat.name == "repeat"


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="unknown key 'max_run'"):
        fs.pipeline(max_run=1)
    with pytest.raises(ConfigError, match="`answer` names the reply of a model"):
        fs.pipeline(answer="a")
    with pytest.raises(BadRequest, match="takes script"):
        checked.inputs()
