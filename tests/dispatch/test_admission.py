import asyncio

import msgspec
import pytest

from foreserve.core import Forecast, Length, OutcomeKind, Work
from foreserve.dispatch.admission import (
    LEAST_RETRY_S,
    MOST_RETRY_S,
    Always,
    Bounded,
    Foreseen,
    Patient,
    predicted_total,
    predicted_wait,
)
from foreserve.dispatch.ordering import ResponseRatio
from foreserve.ports import QueueView, Refusal
from foreserve.simulation.clock import run
from tests.dispatch.harness import House


def work(deadline: float | None = None, *, foreseen: float | None = None, priced: bool = True) -> Work:
    forecast = None
    if foreseen is not None:
        output = Length(mean=50.0, p50=40.0, p80=60.0, p95=90.0, source="test")
        forecast = Forecast(input_tokens=10, output=output, most_tokens=100, seconds=foreseen)
    cost = {"slots": 1.0} if priced else {}
    return Work(id="a", payload=None, cost=cost, arrival=0, deadline=deadline, forecast=forecast)


def view(waiting: int, running: int = 4, pace: float | None = 2.0) -> QueueView:
    return QueueView(waiting=waiting, running=running, slots=4, seconds_per_request=pace)


def test_a_full_queue_refuses():
    refusal = Bounded(max_waiting=10, max_wait_s=1e6).admit(work(), view(10), 0)
    assert refusal is not None
    assert "queue is full" in refusal.reason
    assert LEAST_RETRY_S <= refusal.retry_after <= MOST_RETRY_S


def test_a_predicted_wait_beyond_the_limit_refuses_and_says_how_long():
    policy = Bounded(max_waiting=1000, max_wait_s=10)
    assert policy.admit(work(), view(20), 0) is None  # 20 * 2 s / 4 = 10 s
    refusal = policy.admit(work(), view(28), 0)
    assert refusal is not None
    assert refusal.retry_after == 4.0
    assert "14.0 s" in refusal.reason


def test_a_deadline_that_cannot_be_met_refuses():
    policy = Bounded(max_waiting=1000, max_wait_s=100)
    assert policy.admit(work(deadline=7.0), view(10), 0) is None  # 5 s wait + 2 s work
    refusal = policy.admit(work(deadline=6.0), view(10), 0)
    assert refusal is not None
    assert "deadline" not in refusal.reason or refusal.retry_after >= LEAST_RETRY_S


@pytest.mark.parametrize("policy", [Bounded(1000, 100), Foreseen(1000, 100)])
def test_a_deadline_leaves_room_for_what_comes_behind_in_a_pipeline(policy: Bounded | Foreseen):
    last = work(deadline=9.0, foreseen=2.0)
    first = msgspec.structs.replace(last, after_s=3.0)
    assert policy.admit(last, view(10), 0) is None  # 5 s wait + 2 s work
    refusal = policy.admit(first, view(10), 0)
    assert refusal is not None
    assert "5.0 s of work, 3.0 s of them in the stages behind it, exceed its deadline in 9.0 s" in refusal.reason
    assert policy.admit(msgspec.structs.replace(first, deadline=11.0), view(10), 0) is None


def test_a_deadline_leaves_room_for_recent_errors():
    policy = Bounded(max_waiting=1000, max_wait_s=100)
    wrong = QueueView(waiting=10, running=4, slots=4, seconds_per_request=2.0, stretch=1.5)
    assert policy.admit(work(deadline=10.5), wrong, 0) is None  # (5 s + 2 s) * 1.5
    refusal = policy.admit(work(deadline=10.4), wrong, 0)
    assert refusal is not None
    assert "5.5 s of work" in refusal.reason


def test_what_is_foreseen_of_a_request_counts_and_not_what_others_take():
    policy = Bounded(max_waiting=1000, max_wait_s=100)
    assert policy.admit(work(deadline=5.5, foreseen=0.5), view(10), 0) is None  # 5 s wait + 0.5 s work
    refusal = policy.admit(work(deadline=9.0, foreseen=4.5), view(10), 0)
    assert refusal is not None
    assert "4.5 s of work" in refusal.reason
    assert policy.admit(work(deadline=0.1, foreseen=9.0), view(10, pace=None), 0) is None, "nothing has ended yet"


def test_what_has_no_price_yet_is_refused_only_for_what_every_request_takes():
    policy = Bounded(max_waiting=1000, max_wait_s=100)
    seen = msgspec.structs.replace(view(10), least_seconds=0.25)
    assert policy.admit(work(deadline=5.25, priced=False), seen, 0) is None
    assert policy.admit(work(deadline=5.24, priced=False), seen, 0) is not None


def test_the_pace_of_starts_tells_the_wait():
    paced = QueueView(waiting=10, running=4, slots=4, seconds_per_request=2.0, seconds_between_starts=0.25)
    assert predicted_wait(paced) == 2.5
    assert predicted_total(work(), paced) == 4.5


def test_nothing_is_refused_on_a_guess():
    policy = Bounded(max_waiting=1000, max_wait_s=0.001)
    assert policy.admit(work(deadline=0.1), view(500, pace=None), 0) is None
    assert policy.admit(work(deadline=0.1), view(0), 0) is None


def test_always_takes_everything():
    assert Always(max_waiting=1, max_wait_s=1).admit(work(deadline=0.1), view(10**6), 0) is None


def test_patient_refuses_when_the_queue_is_full_alone():
    policy = Patient(max_waiting=10, max_wait_s=0.001)
    assert policy.admit(work(deadline=0.1), view(9), 0) is None
    refusal = policy.admit(work(), view(10), 0)
    assert refusal is not None
    assert "10 requests wait (limit 10)" in refusal.reason


def test_foreseen_goes_by_the_requests_own_time_and_place():
    policy = Foreseen(max_waiting=100, max_wait_s=10.0)
    length = Length(mean=10, p50=10, p80=10, p95=10, source="test")
    forecast = Forecast(input_tokens=1, output=length, most_tokens=20, seconds=3.0)
    own = Work(id="a", payload=None, cost={"slots": 1.0}, arrival=0, deadline=5.0, forecast=forecast)

    def asked(ahead: float | None) -> Refusal | None:
        seen = QueueView(
            waiting=10, running=4, slots=4, seconds_per_request=99.0, seconds_between_starts=0.5, ahead=ahead
        )
        return policy.admit(own, seen, 0)

    assert asked(4.0) is None  # 4 * 0.5 s + 3 s
    for ahead, wait in ((4.2, "2.1 s"), (None, "5.0 s")):
        refusal = asked(ahead)
        assert refusal is not None
        assert refusal.reason == f"{wait} predicted wait and 3.0 s of work exceed its deadline in 5.0 s"
    assert policy.admit(work(deadline=0.1), view(10), 0) is None, "nothing is foreseen of it"
    assert policy.admit(work(deadline=9.5, priced=False), view(19), 0) is None
    refusal = policy.admit(work(deadline=9.4, priced=False), view(19), 0)  # 19 * 2 s / 4 in the last place
    assert refusal is not None
    assert refusal.reason.startswith("9.5 s predicted wait")
    refusal = policy.admit(work(), view(50), 0)  # 50 * 2 s / 4
    assert refusal is not None
    assert "25.0 s exceeds the limit of 10 s" in refusal.reason
    assert policy.admit(own, view(0), 4.9) is None, "it starts at once"
    assert policy.admit(work(), view(100), 0) is not None


@pytest.mark.parametrize("made", [Bounded, Foreseen, Patient])
def test_a_full_queue_is_full_for_who_has_its_share_and_in_the_end_for_all(made: type[Bounded]):
    policy = made(max_waiting=10, max_wait_s=1e6)

    def refused(waiting: int, own: int, tenants: int) -> bool:
        seen = msgspec.structs.replace(view(waiting), own=own, tenants=tenants)
        return policy.admit(work(), seen, 0) is not None

    assert not refused(9, own=9, tenants=1)
    assert refused(10, own=10, tenants=1)
    assert refused(10, own=10, tenants=2)
    assert not refused(10, own=0, tenants=2)
    assert not refused(14, own=4, tenants=2)
    assert refused(15, own=5, tenants=2), "it has its half"
    assert refused(20, own=0, tenants=3), "twice the limit is for everybody"


@pytest.mark.parametrize("made", [Bounded, Foreseen])
def test_a_flood_of_one_tenant_does_not_close_the_door_to_another(made: type[Bounded]):
    async def main() -> None:
        house = House(policy=ResponseRatio(burst_tokens=100.0), admission=made(max_waiting=20, max_wait_s=15.0))
        house.replica()
        length = Length(mean=100, p50=100, p80=100, p95=100, source="test")
        forecast = Forecast(input_tokens=0, output=length, most_tokens=200, seconds=1.0)
        for number in range(60):
            house.submit(f"a{number}", 1.0, tenant="a", forecast=forecast)
            await asyncio.sleep(0.25)
        assert house.dispatcher.view().waiting >= 12
        assert "shed" in house.ended().values(), "the flood itself is bounded"
        deadline = asyncio.get_running_loop().time() + 8.0  # all that wait would take longer
        outcome = await house.submit("b", 1.0, tenant="b", forecast=forecast, deadline=deadline).settled()
        assert outcome.kind is OutcomeKind.DONE, outcome.reason
        await asyncio.sleep(100)
        assert len(house.outcomes) == 61
        assert not house.dispatcher.tenants_waiting

    run(main())
