"""A request is refused when it comes rather than in its middle, by what its like have asked of services."""

from __future__ import annotations

from typing import Any

import pytest

import foreserve as fs
from foreserve.clock import now
from foreserve.core import OutcomeKind, Request
from foreserve.errors import Shed
from foreserve.pipelines.learned import Learned
from foreserve.pipelines.pipeline import Pipeline
from foreserve.ports import QueueView
from foreserve.services.pipeline_expected import Promises, expected_calls, refusal, service_stages
from tests.gateway.scripted import ScriptedLLM

chat = ScriptedLLM(slots=2)
first = fs.ask(chat, "{script}", name="first", max_tokens=64)
claims = fs.ask(chat, "say {line}", name="claims", max_tokens=64)
queries = fs.ask(chat, "say {word}", name="queries", max_tokens=64)


def fanned(script: str) -> Any:
    def check(line: Any) -> Any:
        return claims(line).split(fs.words).map(queries)

    return first(script).split(fs.lines).map(check)


def test_calls_are_the_product_of_the_fan_outs_around_a_stage():
    plan, learned = Pipeline(fanned).plan, Learned()
    names = dict.fromkeys([stage for stage, _ in service_stages(plan.root)], "chat")
    assert len(names) == 3
    assert expected_calls(plan, learned, names) == {"chat": 1.0}
    learned.fanned_out("check", 4)
    assert expected_calls(plan, learned, names) == {"chat": 5.0}
    learned.fanned_out("queries", 3)
    assert expected_calls(plan, learned, names) == {"chat": 17.0}
    each = {stage: stage.name for stage in names}
    assert expected_calls(plan, learned, each) == {"first": 1.0, "claims": 4.0, "queries": 12.0}


def test_promises_are_kept_call_by_call_and_end_with_the_request():
    promises = Promises()
    promises.make("a", {"chat": 2.5})
    promises.make("b", {"chat": 1.0, "rank": 1.0})
    for _ in range(4):
        promises.kept("a", "chat")
    assert promises.total == {"chat": 1.0, "rank": 1.0}
    promises.kept("b", "other")
    promises.over("a")
    promises.over("b")
    promises.over("b")
    assert promises.total == {}


def view(waiting: int, pace: float | None = None) -> QueueView:
    return QueueView(
        waiting=waiting, running=4, slots=4.0, seconds_per_request=2.0, seconds_between_starts=pace, least_seconds=0.1
    )


def test_what_cannot_be_done_by_the_deadline_is_refused_and_nothing_on_a_guess():
    assert refusal({"chat": 5.0}, {"chat": 3.0}, {"chat": view(0)}, 4.0) is None  # 8 calls of 2 s, four at once
    late = refusal({"chat": 5.0}, {"chat": 3.0}, {"chat": view(2)}, 4.0)
    assert late is not None
    assert late.message == (
        "'chat' has 2 calls waiting, 3 more are expected of requests that run and 5 of this one: 5.0 s of work, and "
        "its deadline is in 4.0 s"
    )
    assert late.retry_after == 1.0
    assert refusal({"chat": 5.0}, {"chat": 3.0}, {"chat": view(2, pace=0.4)}, 4.0) is None
    assert refusal({"chat": 100.0}, {}, {"chat": view(0)}, 4.0) is None  # nothing is before it
    assert refusal({"chat": 0.0}, {"chat": 100.0}, {"chat": view(9)}, 4.0) is None  # nothing is known of it
    new = QueueView(waiting=50, running=4, slots=4.0, seconds_per_request=None)
    assert refusal({"chat": 5.0}, {"chat": 100.0}, {"chat": new}, 4.0) is None


async def test_a_pipeline_refuses_at_its_door_what_could_not_be_done_by_its_deadline():
    running = fs.App(chat=chat, fanned=fs.pipeline(fanned), state={"history": False}).run()
    await running.start()
    served = running.pipelines["fanned"]

    def submit(id: str, script: str, seconds: float) -> Any:
        request = Request(id=id, service="fanned", payload=None, arrival=now(), deadline=now() + seconds)
        return served.submit(request, {"script": script}, listens=False)

    script = "wait 0.2|say a\n|say b\n|say c"
    assert len(await submit("a", script, 60).result()) == 3
    assert served.status().maps["check"].children == 3
    assert served.status().stages["first"].after_s is not None
    slow = submit("b", script, 60)
    assert served.promises == {"chat": 7.0}  # one, three claims, and one query of each
    with pytest.raises(Shed, match="'chat' has 0 calls waiting, 7 more are expected"):
        submit("c", script, 0.001)
    await submit("d", script, 60).result()
    await slow.result()
    assert served.promises == {}
    await running.stop(1.0)
    running.ledger.check(idle=True)
    assert running.ledger.ended(OutcomeKind.SHED) == 1
    assert running.ledger.ended(OutcomeKind.SHED, child=True) == 0
