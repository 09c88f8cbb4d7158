from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from foreserve.core import Chunk, Finish, Forecast, Length, Outcome, OutcomeKind, Ramp, Work
from foreserve.dispatch.admission import Bounded
from foreserve.dispatch.batching import FirstCome, FixedBatches
from foreserve.dispatch.dispatcher import AGAIN_S
from foreserve.dispatch.flight import MOST_ATTEMPTS, MOST_MEMORY_ATTEMPTS
from foreserve.dispatch.stream import Stream
from foreserve.errors import Expired, ReplicaLost, Shed, Unavailable
from foreserve.ports import Decoded, Pick, Room, Wait
from foreserve.simulation.clock import run
from tests.dispatch.harness import House, PlainDecoder


def test_a_request_runs_and_ends_with_its_figures():
    async def main() -> None:
        house = House()
        house.replica()
        stream = house.submit("a", 2.0)
        assert [list(events) async for events in stream] == [["half"]]
        outcome = stream.outcome
        assert outcome is not None
        assert (outcome.kind, outcome.finish, outcome.replica) == (OutcomeKind.DONE, "stop", "r0")
        assert (outcome.arrival, outcome.started, outcome.first, outcome.ended) == (0.0, 0.0, 1.0, 2.0)
        assert outcome.usage == {"items": 7}
        assert outcome.error() is None
        house.ledger.check(idle=True)

    run(main())


def test_a_replica_is_never_given_more_than_it_can_start():
    async def main() -> None:
        house = House()
        replica = house.replica(slots=3)
        streams = [house.submit(f"r{i}", 1.0) for i in range(20)]
        for stream in streams:
            await stream.settled()
        assert replica.most_held == 3
        assert [batch[0] for batch in replica.batches] == [f"r{i}" for i in range(20)]
        assert asyncio.get_running_loop().time() == pytest.approx(7.0)

    run(main())


def test_requests_wait_for_the_first_replica():
    async def main() -> None:
        house = House()
        stream = house.submit("a")
        await asyncio.sleep(5)
        house.replica()
        assert (await stream.settled()).started == 5.0

    run(main())


def test_deadline_in_the_queue_and_while_running():
    async def main() -> None:
        house = House()
        replica = house.replica()
        first = house.submit("runs", 10.0, deadline=4.0)
        second = house.submit("waits", 1.0, deadline=3.0)
        third = house.submit("late", 1.0, deadline=0.0)
        assert (await third.settled()).kind is OutcomeKind.EXPIRED
        waited = await second.settled()
        assert (waited.kind, waited.ended, waited.started) == (OutcomeKind.EXPIRED, 3.0, None)
        assert "in the queue" in waited.reason
        ran = await first.settled()
        assert (ran.kind, ran.ended) == (OutcomeKind.EXPIRED, 4.0)
        assert "while it ran" in ran.reason
        assert isinstance(ran.error(), Expired)
        await asyncio.sleep(1)
        assert not replica.held
        house.ledger.check(idle=True)

    run(main())


def test_a_caller_who_leaves_stops_the_work_and_frees_the_room_once_it_has_stopped():
    async def main() -> None:
        house = House()
        replica = house.replica()
        first = house.submit("first", 100.0)
        second = house.submit("second", 1.0)
        waiting = house.submit("waiting", 1.0)
        await asyncio.sleep(1)
        waiting.close("bored")
        first.close()
        first.close()
        assert house.ended() == {"waiting": "cancelled", "first": "cancelled"}
        assert list(replica.held) == ["first"], "the engine has not stopped yet"
        assert (await second.settled()).started == pytest.approx(1.01)
        house.ledger.check(idle=True)

    run(main())


def test_a_lost_replica_retries_what_nobody_has_seen_and_fails_the_rest():
    async def main() -> None:
        house = House()
        doomed = house.replica("doomed", slots=3)
        seen = house.submit("seen", 2.0)
        unseen = house.submit("unseen", 10.0)
        once = house.submit("once", 10.0, idempotent=False)
        await asyncio.sleep(1.5)
        doomed.die()
        house.replica("other", slots=3)
        lost = await seen.settled()
        assert (lost.kind, lost.code) == (OutcomeKind.FAILED, "replica_lost")
        assert isinstance(lost.error(), ReplicaLost)
        assert "after part of the answer" in lost.reason
        assert (await once.settled()).kind is OutcomeKind.FAILED
        retried = await unseen.settled()
        assert (retried.kind, retried.attempt, retried.replica) == (OutcomeKind.DONE, 1, "other")
        assert retried.again == "replica lost"
        house.ledger.check(idle=True)

    run(main())


def test_a_request_that_kills_replicas_is_not_tried_for_ever():
    async def main() -> None:
        house = House()
        stream = house.submit("poison", 10.0)
        for generation in range(MOST_ATTEMPTS):
            replica = house.replica(f"g{generation}")
            await asyncio.sleep(1)
            replica.die()
        outcome = await stream.settled()
        assert (outcome.kind, outcome.code) == (OutcomeKind.FAILED, "replica_lost")
        house.ledger.check(idle=True)

    run(main())


def test_retries_keep_their_order_before_later_arrivals():
    async def main() -> None:
        house = House()
        doomed = house.replica("doomed", slots=3)
        streams = [house.submit(name, 10.0) for name in ("a", "b", "c")]
        await asyncio.sleep(1)
        streams += [house.submit(name, 1.0) for name in ("d", "e")]
        doomed.die()
        other = house.replica("other", slots=1)
        for stream in streams:
            await stream.settled()
        assert [batch[0] for batch in other.batches] == ["a", "b", "c", "d", "e"]

    run(main())


async def heard(stream: Stream) -> str:
    return "".join([letter async for letters in stream for letter in letters])


def test_an_answer_that_can_be_continued_outlives_its_replica():
    async def main() -> None:
        house = House()
        doomed = house.replica("doomed", slots=2)
        output = Length(mean=40.0, p50=20.0, p80=60.0, p95=80.0, source="test")
        forecast = Forecast(input_tokens=3, output=output, most_tokens=90, seconds=8.0, least_seconds=4.0)
        ramp = Ramp(resource="kv_tokens", base=3, steps=60, most=93)
        stream = house.tell("a", "once upon a time", 1.0, forecast=forecast, ramp=ramp)
        hearing = asyncio.create_task(heard(stream))
        await asyncio.sleep(6.5)
        doomed.die()
        other = house.replica("other", slots=2)
        await asyncio.sleep(0.1)
        rest = other.held["a"]
        assert rest.ramp == Ramp(resource="kv_tokens", base=9, steps=54, most=93)
        assert rest.forecast is not None
        assert (rest.forecast.output.p50, rest.forecast.output.p80, rest.forecast.most_tokens) == (14.0, 54.0, 84)
        assert (rest.forecast.seconds, rest.forecast.least_seconds) == pytest.approx((6.8, 3.4))
        assert await hearing == "once upon a time"
        outcome = await stream.settled()
        assert (outcome.kind, outcome.attempt, outcome.replica) == (OutcomeKind.DONE, 1, "other")
        assert (outcome.started, outcome.first, outcome.ended) == (0.0, 1.0, 6.5 + 11)
        assert outcome.usage == {"letters": 16}, "counted once, over both attempts"
        assert outcome.forecast == forecast, "as it was when it came"
        assert outcome.again == "replica lost, resumed"
        house.ledger.check(idle=True)

    run(main())


def test_what_was_delivered_of_a_lost_attempt_is_not_delivered_again_by_its_late_chunks():
    async def main() -> None:
        house = House()
        doomed = house.replica("doomed")
        stream = house.tell("a", "abcdef", 1.0)
        hearing = asyncio.create_task(heard(stream))
        await asyncio.sleep(2.5)
        work = doomed.held["a"]
        doomed.die()
        house.replica("other")
        await asyncio.sleep(0)
        doomed.say(work, 2, "x", None)
        doomed.say(work, 0, "x", Finish(reason="stop"))
        assert await hearing == "abcdef"

    run(main())


def test_a_request_that_may_not_run_twice_is_not_continued_either():
    async def main() -> None:
        house = House()
        doomed = house.replica("doomed")
        stream = house.tell("a", "abcdef", 1.0, idempotent=False)
        await asyncio.sleep(2.5)
        doomed.die()
        outcome = await stream.settled()
        assert (outcome.kind, outcome.code) == (OutcomeKind.FAILED, "replica_lost")

    run(main())


def test_running_out_of_memory_together_is_tried_more_often_than_a_loss_but_not_for_ever():
    async def main() -> None:
        house = House()
        replica = house.replica()
        crowded = Finish(reason="error", error="out of memory", detail={"retry": "memory"})
        stream = house.tell("a", "abcdefghijklmnopq", 1.0)
        hearing = asyncio.create_task(heard(stream))
        for attempt in range(MOST_MEMORY_ATTEMPTS):
            await asyncio.sleep(1.5)
            assert replica.held["a"].attempt == attempt
            replica.fail("a", 1, crowded)
        assert await hearing == "abcdefghij", "a letter each time"
        outcome = await stream.settled()
        assert (outcome.kind, outcome.code) == (OutcomeKind.FAILED, "engine_error")
        house.ledger.check(idle=True)

    run(main())


@pytest.mark.parametrize(
    ("detail", "again"),
    [
        ({"retry": "memory"}, "out of memory"),
        ({"retry": True, "status": 429}, "server full"),
        ({"retry": "loading", "status": 503}, "server loading"),
        ({"retry": True}, "broken off"),
    ],
)
def test_the_reason_of_another_attempt_is_kept(detail: dict[str, Any], again: str) -> None:
    async def main() -> None:
        house = House()
        replica = house.replica()
        stream = house.tell("a", "ab", 1.0)
        await asyncio.sleep(0.5)
        replica.fail("a", 0, Finish(reason="error", error="no", detail=detail))
        outcome = await stream.settled()
        assert (outcome.kind, outcome.attempt, outcome.again) == (OutcomeKind.DONE, 1, again)
        once = await house.tell("b", "ab", 1.0).settled()
        assert once.again == ""

    run(main())


def test_a_wait_for_memory_does_not_count_as_a_loss():
    async def main() -> None:
        house = House()
        replica = house.replica("r0")
        stream = house.tell("a", "abc", 1.0)
        for _ in range(3):
            await asyncio.sleep(0.5)
            replica.fail("a", 0, Finish(reason="error", error="full", detail={"retry": "memory"}))
        await asyncio.sleep(0.5)
        replica.die()
        house.replica("r1")
        assert await heard(stream) == "abc"
        assert stream.outcome is not None
        assert stream.outcome.started == 2.0, "nothing of the earlier attempts was used"

    run(main())


def test_a_deadline_is_judged_by_what_is_foreseen_of_the_request():
    async def main() -> None:
        house = House()
        house.replica()
        for number in range(3):
            await house.submit(f"before{number}", 2.0).settled()
        start = asyncio.get_running_loop().time()
        house.submit("long", 3.0)
        output = Length(mean=1.0, p50=1.0, p80=1.0, p95=1.0, source="test")
        brief = Forecast(input_tokens=1, output=output, most_tokens=1, seconds=0.5, least_seconds=0.4)
        outcome = await house.submit("brief", 0.5, deadline=start + 4.0, forecast=brief).settled()
        assert (outcome.kind, outcome.started) == (OutcomeKind.DONE, start + 3.0)
        house.submit("long2", 3.0)
        late = await house.submit("late", 0.5, deadline=start + 6.8, forecast=brief).settled()
        assert late.kind is OutcomeKind.EXPIRED
        assert late.ended == pytest.approx(start + 6.4), "0.4 s before its deadline"

    run(main())


def test_late_and_repeated_chunks_change_nothing():
    async def main() -> None:
        house = House()
        doomed = house.replica("doomed")
        stream = house.submit("a", 10.0)
        await asyncio.sleep(1)
        doomed.die()
        house.replica("other")
        await asyncio.sleep(0)
        finish = Finish(reason="stop")
        house.dispatcher.chunks(doomed, [Chunk(id="a", index=0, data="ghost", finish=finish)])
        await asyncio.sleep(5.5)
        other = house.dispatcher._runners["other"]
        repeated = Chunk(id="a", index=0, attempt=1, data="half")
        house.dispatcher.chunks(other, [repeated, repeated])
        events = [event async for turn in stream for event in turn]
        assert events == ["half"]
        house.ledger.check(idle=True)

    run(main())


def test_enough_ends_as_done_and_stops_the_engine():
    async def main() -> None:
        house = House()
        replica = house.replica()
        stream = house.submit("a", 100.0)
        await asyncio.sleep(1)
        replica.say(replica.held["a"], 0, "enough", None)
        outcome = await stream.settled()
        assert (outcome.kind, outcome.finish, outcome.ended) == (OutcomeKind.DONE, "stop", 1.0)
        assert outcome.usage == {"items": 1}
        await asyncio.sleep(1)
        assert not replica.held

    run(main())


def test_a_stalled_or_distant_reader_is_cancelled():
    async def main() -> None:
        house = House()
        replica = house.replica(slots=2)
        stalled = house.submit("stalled", 100.0, stall_s=20.0)
        distant = house.submit("distant", 100.0, bound=2)
        await asyncio.sleep(0)
        for index in range(4):
            if "distant" in replica.held:
                replica.say(replica.held["distant"], index, "x", None)
        await asyncio.sleep(75)
        assert house.ended() == {"distant": "cancelled", "stalled": "cancelled"}
        assert stalled.outcome is not None
        assert stalled.outcome.ended == 70.0
        assert "read nothing for 20 s" in stalled.outcome.reason
        assert distant.outcome is not None
        assert "events behind" in distant.outcome.reason

    run(main())


def test_the_queue_bounds_waiting_time_in_words():
    async def main() -> None:
        house = House(max_wait_s=5.0)
        house.replica()
        house.submit("long", 100.0)
        waits = house.submit("waits")
        outcome = await waits.settled()
        assert (outcome.kind, outcome.ended) == (OutcomeKind.SHED, 5.0)
        assert isinstance(outcome.error(), Shed)
        assert outcome.retry_after

    run(main())


def test_without_a_replica_waiting_ends_as_unavailable():
    async def main() -> None:
        house = House(max_wait_s=5.0)
        waits = house.submit("waits")
        outcome = await waits.settled()
        assert isinstance(outcome.error(), Unavailable)
        other = house.submit("other")
        house.dispatcher.give_up("the model file is gone")
        assert isinstance((await other.settled()).error(), Unavailable)
        refused = house.submit("refused")
        assert refused.outcome is not None, "refused at once"
        assert refused.outcome.reason == "the model file is gone"
        house.replica()
        assert (await house.submit("served").settled()).kind is OutcomeKind.DONE
        house.ledger.check(idle=True)

    run(main())


def test_fixed_batches_close_when_full_or_when_the_oldest_has_waited_enough():
    async def main() -> None:
        house = House(policy=FixedBatches(size=3, max_wait_s=2.0))
        replica = house.replica(slots=8)
        streams = [house.submit(name) for name in ("a", "b", "c", "d")]
        await asyncio.sleep(0)
        assert replica.batches == [("a", "b", "c")]
        for stream in streams:
            await stream.settled()
        assert replica.batches == [("a", "b", "c"), ("d",)]
        assert streams[3].outcome is not None
        assert streams[3].outcome.started == 2.0

    run(main())


def test_an_engine_error_that_may_be_retried_runs_elsewhere_once():
    async def main() -> None:
        house = House()
        bad = house.replica("bad")
        stream = house.submit("a", 10.0)
        await asyncio.sleep(1)
        house.dispatcher._runners.pop("bad")
        house.replica("good")
        house.dispatcher.chunks(
            bad, [Chunk(id="a", index=0, finish=Finish(reason="error", error="reset", detail={"retry": True}))]
        )
        outcome = await stream.settled()
        assert (outcome.kind, outcome.replica, outcome.attempt) == (OutcomeKind.DONE, "good", 1)

    run(main())


@pytest.mark.parametrize(
    ("finish", "kind", "code"),
    [
        (Finish(reason="length"), OutcomeKind.DONE, ""),
        (Finish(reason="rejected", error="too long"), OutcomeKind.FAILED, "invalid_request"),
        (Finish(reason="error", error="out of memory"), OutcomeKind.FAILED, "engine_error"),
        (Finish(reason="cancelled"), OutcomeKind.CANCELLED, "client_gone"),
        (
            Finish(reason="rejected", error="no", detail={"status": 422, "body": b"{}"}),
            OutcomeKind.FAILED,
            "upstream_refused",
        ),
    ],
)
def test_every_finish_becomes_one_outcome(finish: Finish, kind: OutcomeKind, code: str):
    async def main() -> None:
        house = House()
        replica = house.replica()
        stream = house.submit("a", 100.0)
        await asyncio.sleep(1)
        replica.say(replica.held["a"], 0, None, finish)
        outcome = await stream.settled()
        assert (outcome.kind, outcome.code) == (kind, code)
        house.ledger.check(idle=True)

    run(main())


def test_what_would_be_refused_whatever_it_costs_is_turned_away_and_counted():
    async def main() -> None:
        house = House(admission=Bounded(max_waiting=1, max_wait_s=1000))
        house.replica()
        assert not house.turned_away("early")
        house.submit("runs", 10.0)
        await asyncio.sleep(0)
        house.submit("waits", 10.0)
        assert house.turned_away("late")
        assert house.ended() == {"late": "shed"}
        assert house.ledger.ended(OutcomeKind.SHED) == 1
        assert list(house.ledger.open) == ["runs", "waits"]

    run(main())


def test_a_policy_hears_only_of_what_it_was_given():
    class Listening(FirstCome):
        heard: ClassVar[list[str]] = []

        def settled(self, outcome: Outcome) -> None:
            self.heard.append(outcome.id)

    async def main() -> None:
        house = House(policy=Listening(), admission=Bounded(max_waiting=1, max_wait_s=1000))
        house.replica()
        first = house.submit("first")
        await asyncio.sleep(0)
        second, third = house.submit("second"), house.submit("third")
        for stream in (first, second, third):
            await stream.settled()
        assert Listening.heard == ["first", "second"]

    run(main())


def test_a_request_that_can_no_longer_be_done_in_time_is_not_begun():
    async def main() -> None:
        house = House()
        replica = house.replica()
        for number in range(3):
            await house.submit(f"before{number}", 2.0).settled()
        start = asyncio.get_running_loop().time()
        house.submit("long", 3.0)
        hopeless = house.submit("hopeless", 2.0, deadline=start + 4.0)
        outcome = await hopeless.settled()
        assert (outcome.kind, outcome.ended) == (OutcomeKind.EXPIRED, start + 2.0)
        assert "no longer be done" in outcome.reason
        assert "hopeless" not in [batch[0] for batch in replica.batches]

    run(main())


class Unreadable(PlainDecoder):
    def feed(self, chunk: Chunk) -> Decoded:
        raise ValueError("not what was expected")


def test_one_answer_that_cannot_be_read_leaves_the_others_of_its_step_alone():
    async def main() -> None:
        house = House()
        replica = house.replica(slots=3)
        bad = house.submit("bad", 100.0, decoder=Unreadable)
        good = house.submit("good", 100.0)
        await asyncio.sleep(1)
        works = dict(replica.held)
        step = [Chunk(id=name, index=0, data="x") for name in works]
        last = [Chunk(id=name, index=1, finish=Finish(reason="stop")) for name in works]
        house.dispatcher.chunks(replica, step)
        house.dispatcher.chunks(replica, last)
        outcome = await bad.settled()
        assert (outcome.kind, outcome.code) == (OutcomeKind.FAILED, "engine_error")
        assert "not what was expected" in outcome.reason
        assert (await good.settled()).kind is OutcomeKind.DONE
        house.ledger.check(idle=True)

    run(main())


def test_a_reader_who_falls_behind_over_the_last_chunk_ends_once():
    async def main() -> None:
        house = House()
        replica = house.replica()
        stream = house.submit("a", 100.0, bound=1)
        await asyncio.sleep(1)
        replica.say(replica.held["a"], 0, "one", None)
        replica.say(replica.held["a"], 1, "two", Finish(reason="stop"))
        assert stream.outcome is not None
        assert stream.outcome.kind is OutcomeKind.CANCELLED
        house.ledger.check(idle=True)

    run(main())


def test_a_policy_or_an_observer_that_fails_stops_nothing():
    class Failing(FirstCome):
        asked = 0

        def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
            self.asked += 1
            if self.asked == 1:
                raise RuntimeError("a defect of the policy")
            return super().pick(rooms, now)

        def settled(self, outcome: Outcome) -> None:
            raise RuntimeError("another defect")

    async def main() -> None:
        house = House(policy=Failing())
        house.replica(slots=2)
        streams = [house.submit("a", 1.0), house.submit("b", 1.0)]
        for stream in streams:
            outcome = await stream.settled()
            assert (outcome.kind, outcome.started) == (OutcomeKind.DONE, AGAIN_S)
        house.ledger.check(idle=True)

    run(main())


def test_another_policy_takes_over_what_waits():
    async def main() -> None:
        house = House()
        for name in "abc":
            house.submit(name)
        house.dispatcher.adopt(FixedBatches(size=3), Bounded(max_waiting=10, max_wait_s=9.0))
        replica = house.replica(slots=3)
        await asyncio.sleep(5.0)
        assert replica.batches == [("a", "b", "c")]
        house.ledger.check(idle=True)

    run(main())


def test_no_timer_is_left_once_nothing_waits_and_nothing_can_be_served():
    async def main():
        house = House(policy=FixedBatches(size=4, max_wait_s=5.0))
        house.replica("r0", slots=4)
        stream = house.submit("q0", 1.0)
        await asyncio.sleep(1.0)
        stream.close()
        house.dispatcher.give_up("the server is stopping")
        assert not asyncio.get_running_loop().timers()

    run(main())


class Refusing(FirstCome):
    """Of a user's own, and wrong: it fails to take some in."""

    def add(self, work: Work, now: float) -> None:
        if work.id == "b":
            raise ValueError("not this one")
        super().add(work, now)


def test_what_a_policy_fails_to_take_in_ends_as_shed():
    async def main() -> None:
        house = House(policy=Refusing(), max_wait_s=5.0)
        house.replica()
        before = house.submit("a", 1.0)
        assert (await before.settled()).kind is OutcomeKind.DONE
        with pytest.raises(ValueError, match="not this one"):
            house.submit("b", 1.0)
        await asyncio.sleep(20.0)
        (late,) = [outcome for outcome in house.outcomes if outcome.id == "b"]
        assert (late.kind, late.ended) == (OutcomeKind.SHED, 6.0)
        assert (await house.submit("c", 1.0).settled()).kind is OutcomeKind.DONE
        house.ledger.check(idle=True)

    run(main())
