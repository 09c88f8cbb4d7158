from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from foreserve.errors import ClientGone, Expired
from foreserve.pipelines import log as logs
from foreserve.pipelines.events import BEHIND, Delta, End, Item
from foreserve.pipelines.floor import Floor
from foreserve.pipelines.flow import show
from foreserve.pipelines.learned import Learned
from foreserve.pipelines.log import TooMany
from foreserve.pipelines.pipeline import pipeline
from foreserve.pipelines.run import Run
from foreserve.pipelines.splitting import lines, words
from foreserve.pipelines.stage import stage
from foreserve.pipelines.timeline import Timeline
from foreserve.simulation import clock
from tests.pipelines.stages import count, double, plus, shout, slowly, write

ended: list[str] = []


@stage
async def until_cancelled(x: int) -> int:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        ended.append(f"{x}")
        raise
    return x


@pipeline
def nested(n: int) -> Any:
    return count(n).map(lambda x: count(n).map(until_cancelled))


@pytest.mark.parametrize("how", ["cancel", "deadline", "waiter", "failure"])
def test_the_end_of_a_request_ends_all_that_works_for_it(how: str):
    ended.clear()

    async def main() -> None:
        floor = Floor()
        run = Run(nested.plan, {"n": 3}, floor=floor, deadline=5.0 if how == "deadline" else None).start()
        waiting = asyncio.ensure_future(run.result())
        await asyncio.sleep(1)
        assert (run.frames, run.invocations) == (13, 9)
        if how == "cancel":
            run.cancel("enough")
        elif how == "waiter":
            waiting.cancel()
        elif how == "failure":
            run.broken(ValueError("elsewhere"))
        wanted: dict[str, type[BaseException]] = {
            "cancel": ClientGone, "deadline": Expired, "waiter": asyncio.CancelledError, "failure": ValueError
        }  # fmt: skip
        with pytest.raises(wanted[how]):
            await waiting
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sorted(ended) == ["0", "0", "0", "1", "1", "1", "2", "2", "2"]
        assert (run.frames, run.invocations, floor.running) == (0, 0, 0)
        assert asyncio.get_running_loop().time() == (5.0 if how == "deadline" else 1.0)

    clock.run(main())


def test_events_have_names_and_places():
    @pipeline
    def p(text: str) -> Any:
        answer = write(text)
        claims = answer.split(lines)
        claims.map(lambda claim: show("words", claim.split(words).map(shout)))
        return {"answer": answer, "claims": claims, "n": slowly(3)}

    async def main() -> None:
        run = p.start("a b\nc")
        events = [event async for event in run.each()]
        assert "".join(e.text for e in events if isinstance(e, Delta) and e.name == "answer") == "a b\nc"
        said = [(e.path, e.value) for e in events if isinstance(e, Item) and e.name == "words"]
        assert said == [((0, 0), "A"), ((0, 1), "B"), ((1, 0), "C")]
        assert Item("n", (), 3) in events
        assert [(e.name, e.path, e.count) for e in events if isinstance(e, End) and e.name != "words"] == [
            ("claims", (0,), None),
            ("answer", (), None),
            ("claims", (1,), None),
            ("claims", (), 2),
        ]
        assert run.value() == {"answer": "a b\nc", "claims": ["a b", "c"], "n": 3}

    clock.run(main())


async def test_a_slow_client_holds_up_what_makes_more():
    made = 0

    @stage
    async def many(n: int) -> AsyncIterator[int]:
        nonlocal made
        for i in range(n):
            made += 1
            yield i

    @pipeline
    def p(n: int) -> Any:
        return many(n).map(double)

    run = p.start(5000)
    for _ in range(300):
        await asyncio.sleep(0)
    assert made < BEHIND + 200
    assert [e.value async for e in run.each() if isinstance(e, Item)] == [2 * i for i in range(5000)]
    assert made == 5000


async def test_a_stream_beyond_its_bound_fails_its_request(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "MOST_ITEMS", 100)

    @pipeline
    def p(n: int) -> Any:
        return count(n).map(lambda x: double(double(x)))

    assert len(await p(100)) == 100
    with pytest.raises(TooMany, match="more than 100 items"):
        await p(101)


async def test_a_timeline_has_each_call_with_its_place():
    timeline = Timeline()

    @pipeline
    def p(n: int) -> Any:
        return count(n).map(lambda x: slowly(x))

    await Run(p.plan, {"n": 2}, timeline=timeline).start().result()
    spans = {(span.name, span.ancestry): span for span in timeline.spans}
    assert list(spans) == [("count", ()), ("slowly", (("count", 0),)), ("slowly", (("count", 1),))]
    first = spans["slowly", (("count", 0),)]
    assert first.ended is not None
    assert first.ended - first.began > 0.9
    assert {span.how for span in timeline.spans} == {"done"}


async def test_plain_functions_are_on_the_timeline_too():
    timeline = Timeline()

    @pipeline
    def p(n: int) -> Any:
        return {"each": count(n).map(lambda x: plus(x, 1)), "one": plus(n, 1)}

    await Run(p.plan, {"n": 2}, timeline=timeline).start().result()
    spans = {(span.name, span.ancestry): span for span in timeline.spans}
    assert set(spans) == {
        ("count", ()),
        ("plus", ()),
        ("plus", (("count", 0),)),
        ("plus", (("count", 1),)),
    }
    assert {span.how for span in timeline.spans} == {"done"}


def test_without_streaming_a_stage_hands_on_all_at_once():
    @pipeline
    def p(text: str) -> Any:
        return write(text).split(lines).map(shout)

    async def main(streaming: bool) -> tuple[list[float], Any]:
        run = Run(p.plan, {"text": "a b\nc d"}, streaming=streaming).start(listens=True)
        loop = asyncio.get_running_loop()
        return [round(loop.time(), 2) async for event in run.each() if isinstance(event, Item)], run.value()

    assert clock.run(main(True)) == ([0.04, 0.07], ["A B", "C D"])
    assert clock.run(main(False)) == ([0.07, 0.07], ["A B", "C D"])


def _two(waited: Any) -> Any:
    def two(n: int) -> Any:
        return count(n).map(waited).map(slowly)

    return two


def _broken(waited: Any, failing: Any) -> Any:
    def broken(n: int) -> Any:
        return failing(waited(n))

    return broken


def test_what_a_call_is_followed_by_is_learned_of_requests_that_are_done():
    @stage
    async def waited(x: int) -> int:
        await asyncio.sleep(1.0)
        return x

    @stage
    async def failing(x: int) -> int:
        await asyncio.sleep(1.0)
        raise ValueError("no")

    async def main() -> None:
        learned = Learned()
        two = pipeline(_two(waited))
        for _ in range(2):
            await Run(two.plan, {"n": 3}, learned=learned).start().result()
        assert learned.after("waited") == pytest.approx(1.0)  # the slowest of `slowly`
        assert learned.after("slowly") == pytest.approx(1.0 - (1.0 + 1 / 2 + 1 / 3) / 3)
        assert learned.after("never") == 0.0
        broken = pipeline(_broken(waited, failing))
        with pytest.raises(ValueError, match="no"):
            await Run(broken.plan, {"n": 3}, learned=learned).start().result()
        assert learned.after("failing") == 0.0

    clock.run(main())
