import asyncio
import itertools

import pytest
from tests.loadgen.server import serving

from foreserve.errors import ConfigError
from foreserve.loadgen.arrivals import Arrival, ClosedLoop, constant, generator, poisson
from foreserve.loadgen.client import Client, ClientOptions
from foreserve.loadgen.prompts import Prompt
from foreserve.loadgen.records import Ending
from foreserve.loadgen.run import Limits, run


async def load(url, arrivals, *texts, limits=None, **options):
    client_options = ClientOptions(url=url, model="tiny", **options.pop("client", {}))
    async with Client(client_options, generator(0)) as client:
        prompts = [Prompt(prompt=text) for text in texts or ("fine",)]
        return await run(client, prompts, arrivals, limits or Limits(), **options)


async def test_requests_are_sent_when_due_and_prompts_in_turn():
    async with serving() as fake:
        outcome = await load(fake.url, constant(100.0), "a", "b", "c", limits=Limits(requests=7))
    assert [result.index for result in outcome.results] == list(range(7))
    assert [result.due for result in outcome.results] == pytest.approx([n / 100 for n in range(7)])
    assert all(result.sent >= result.due for result in outcome.results)
    assert {result.ending for result in outcome.results} == {Ending.DONE}
    assert fake.calls == {"a": 3, "b": 2, "c": 2}
    assert (outcome.unsent, outcome.interrupted) == (0, False)


async def test_an_open_loop_does_not_wait_for_answers():
    async with serving() as fake:
        outcome = await load(fake.url, constant(200.0), "hang", limits=Limits(requests=20, drain_s=0.1))
    assert [r.ending for r in outcome.results] == [Ending.ABANDONED] * 20


async def test_a_seed_gives_the_same_schedule():
    async with serving() as fake:
        first, again = [
            await load(fake.url, poisson(500.0, generator(3)), limits=Limits(requests=30)) for _ in range(2)
        ]
    assert [r.due for r in first.results] == [r.due for r in again.results]


async def test_a_closed_loop_has_as_many_running_as_clients():
    async with serving(gap_s=0.01) as fake:
        outcome = await load(fake.url, ClosedLoop(3), limits=Limits(requests=11))
    assert fake.most_running == 3
    assert len(outcome.results) == 11


async def test_a_trace_ends_with_its_rows_and_can_bring_lengths():
    rows = [Arrival(0.0, None, 5), Arrival(0.01), Arrival(0.01, None, 6)]
    async with serving() as fake:
        outcome = await load(fake.url, iter(rows), trace_lengths=True)
        assert len(outcome.results) == 3
        assert sorted(body.get("max_tokens", 0) for _, body in fake.seen) == [0, 5, 6]


async def test_sending_ends_with_the_duration():
    async with serving() as fake:
        outcome = await load(fake.url, constant(50.0), limits=Limits(requests=10**6, duration_s=0.3))
        assert outcome.results
        assert outcome.results[-1].due <= outcome.sending_s
        assert outcome.sending_s >= 0.3
        outcome = await load(fake.url, ClosedLoop(2), limits=Limits(requests=10**6, duration_s=0.3))
        assert outcome.results
        assert {result.ending for result in outcome.results} == {Ending.DONE}


async def test_what_the_drain_limit_finds_is_abandoned():
    async with serving() as fake:
        limits = Limits(requests=4, drain_s=1.0)
        outcome = await load(fake.url, constant(1000.0), "hang", "fine", limits=limits)
        assert [r.ending for r in outcome.results] == [Ending.ABANDONED, Ending.DONE] * 2
        outcome = await load(fake.url, ClosedLoop(2), "hang", limits=Limits(duration_s=0.1, drain_s=0.1))
        assert [r.ending for r in outcome.results] == [Ending.ABANDONED] * 2


async def test_no_drain_still_counts_everything_that_was_sent():
    async with serving(gap_s=0.01) as fake:
        limits = Limits(requests=50, drain_s=0.0)
        outcome = await load(fake.url, iter([Arrival(0.0)] * 50), limits=limits)
    assert [r.index for r in outcome.results] == list(range(50))
    assert Ending.ABANDONED in {r.ending for r in outcome.results}


async def test_requests_in_flight_are_bounded_and_what_never_went_out_is_counted():
    async with serving() as fake:
        limits = Limits(requests=10, duration_s=0.5, drain_s=0.0, max_in_flight=2)
        outcome = await load(fake.url, constant(100.0), "hang", limits=limits)
        assert fake.most_running <= 2
        assert (len(outcome.results), outcome.unsent) == (2, 8)
    async with serving() as fake:
        limits = Limits(requests=40, max_in_flight=2)
        outcome = await load(fake.url, iter([Arrival(0.0)] * 40), limits=limits)
        assert fake.most_running <= 2
        assert (len(outcome.results), outcome.unsent) == (40, 0)
        lags = [result.sent - result.due for result in outcome.results]
        assert max(lags) > min(lags), "waiting for room shows as lag"


async def test_stop_ends_a_run_at_once():
    async with serving() as fake:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.2, stop.set)
        outcome = await asyncio.wait_for(load(fake.url, constant(20.0), "hang", stop=stop), 5)
    assert outcome.interrupted
    assert outcome.results
    assert {result.ending for result in outcome.results} == {Ending.ABANDONED}


async def test_progress_ends_with_the_whole():
    seen = []
    async with serving(gap_s=0.03) as fake:
        await load(fake.url, constant(50.0), "fine", "status:500", limits=Limits(requests=10), on_progress=seen.append)
    assert (seen[-1].sent, seen[-1].ended, seen[-1].done, seen[-1].in_flight) == (10, 10, 5, 0)
    assert any(progress.in_flight for progress in seen)
    assert all(a.ended <= b.ended for a, b in itertools.pairwise(seen))


async def test_a_prompt_that_the_endpoint_cannot_take_is_found_before_anything_is_sent():
    async with (
        serving() as fake,
        Client(ClientOptions(url=fake.url, model="m", endpoint="completions"), generator(0)) as c,
    ):
        prompts = [Prompt(prompt="fine"), Prompt(messages=[{"role": "user", "content": "x"}])]
        with pytest.raises(ConfigError, match="chat endpoint"):
            await run(c, prompts, constant(10.0), Limits(requests=1))
        assert not fake.seen


@pytest.mark.parametrize("wrong", [{"requests": 0}, {"duration_s": 0.0}, {"drain_s": -1.0}, {"max_in_flight": 0}])
def test_limits_are_checked(wrong):
    with pytest.raises(ConfigError, match="must be"):
        Limits(**wrong)
