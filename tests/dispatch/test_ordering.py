"""The order as a pure policy, and its promises on the virtual clock."""

from __future__ import annotations

import asyncio
import inspect
import random
from itertools import count
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreserve.core import Forecast, Length, Outcome, OutcomeKind, Work
from foreserve.dispatch.admission import Always, Foreseen
from foreserve.dispatch.batching import FirstCome
from foreserve.dispatch.ordering import ResponseRatio
from foreserve.errors import ConfigError
from foreserve.ports import Pick, Room
from foreserve.simulation.checks import reachable
from foreserve.simulation.clock import run
from tests.dispatch.harness import House


def forecast(seconds: float, tokens: float = 100.0, least: float = 0.0) -> Forecast:
    length = Length(mean=tokens, p50=tokens, p80=tokens, p95=tokens, source="test")
    return Forecast(input_tokens=0, output=length, most_tokens=10_000, seconds=seconds, least_seconds=least)


def work(request_id: str, seconds: float | None = 1.0, arrival: float = 0.0, **words: object) -> Work:
    cost = words.pop("cost", {"slots": 1.0})
    tokens = words.pop("tokens", 100.0)
    least = words.pop("least", 0.0)
    foreseen = None if seconds is None else forecast(seconds, tokens, least)  # type: ignore[arg-type]
    return Work(id=request_id, payload=None, cost=cost, arrival=arrival, forecast=foreseen, **words)  # type: ignore[arg-type]


def room(name: str = "r", kv: float = 1000.0, of: float = 1000.0) -> Room:
    return Room(replica=name, free={"slots": 4.0, "kv_tokens": kv}, capacity={"slots": 4.0, "kv_tokens": of}, running=0)


def taken(policy: ResponseRatio, now: float, rooms: list[Room] | None = None) -> Pick:
    pick = policy.pick(rooms or [room()], now)
    assert isinstance(pick, Pick)
    return pick


def outcome(request_id: str, usage: dict[str, float], started: float | None = 0.0, ended: float = 1.0) -> Outcome:
    kind = OutcomeKind.DONE if started is not None else OutcomeKind.EXPIRED
    return Outcome(id=request_id, service="s", kind=kind, arrival=0, started=started, ended=ended, usage=usage)


# --- one that nothing waits beside


class LinedUp(ResponseRatio):
    """Puts every request in its line at once."""

    def add(self, work: Work, now: float) -> None:
        super().add(work, now)
        self._line_up()


def test_what_waits_alone_is_picked_as_if_it_stood_in_a_line():
    draw = random.Random(11)
    policies = ResponseRatio(oldest_every=3), LinedUp(oldest_every=3)
    now, running, picked = 0.0, [], 0
    for number in range(600):
        now += draw.expovariate(2.0)
        match draw.randrange(4):
            case 0 | 1:
                words = {"tenant": f"t{draw.randrange(3)}", "deadline": now + 3.0 if draw.random() < 0.3 else None}
                one = work(f"w{number}", draw.expovariate(1.0), now - draw.choice((0.0, 50.0)), **words)
                for policy in policies:
                    policy.add(one, now)
            case 2 if running:
                end = outcome(running.pop(), {"output_tokens": draw.randrange(1, 500)}, ended=now)
                for policy in policies:
                    policy.settled(end)
            case _:
                rooms = [room(kv=1000.0)] if draw.random() < 0.8 else []
                if number % 5 == 0:
                    asked = work("asked", 1.0, now, tenant="t1")
                    assert policies[0].ahead(asked, now) == policies[1].ahead(asked, now)
                picks = [policy.pick(rooms, now) for policy in policies]
                assert picks[0] == picks[1]
                if isinstance(picks[0], Pick):
                    running.extend(picks[0].ids)
                    picked += 1
    assert picked > 50


# --- ratio


def test_the_textbook_order():
    """Waited 10, 4, 1 s and 20, 5, 4 s expected: ratios 0.5, 0.8, 0.25 (plus 1)."""
    policy = ResponseRatio(aging=0)
    for name, seconds, arrival in (("a", 20.0, 0.0), ("b", 5.0, 6.0), ("c", 4.0, 9.0)):
        policy.add(work(name, seconds, arrival), arrival)
    pick = taken(policy, 10.0)
    assert pick.ids == ("b",)
    assert pick.why == (
        "ratio 1.8: waited 4.0 s and 5.00 s of patience, 5.00 s expected; 1st of 3 waiting; tenant default at 0 tokens"
    ), "before it is charged"
    assert [taken(policy, 10.0).ids[0] for _ in range(2)] == ["a", "c"]
    assert policy.pick([room()], 10.0) is None


def test_the_ratio_that_is_told_is_the_one_that_the_order_goes_by():
    policy = ResponseRatio(aging=4.0)
    for name, seconds, utility in (("a", 1.0, 1.0), ("b", 4.0, 2.0), ("c", 9.0, 1.0), ("d", 2.0, 1.0)):
        policy.add(work(name, seconds, utility=utility), 0.0)
    told = [float(taken(policy, 2.0).why.split(":")[0].removeprefix("ratio ")) for _ in range(4)]
    assert told == sorted(told, reverse=True)
    policy.add(work("e", 2.0, arrival=2.0, utility=3.0), 2.0)
    assert "s of patience, 2.00 s expected, utility 3;" in taken(policy, 3.0).why


def test_aging_leads_from_the_response_ratio_to_shortest_first():
    def first(aging: float) -> str:
        policy = ResponseRatio(aging=aging)
        policy.add(work("long", 10.0, 0.0), 0.0)
        policy.add(work("short", 1.0, 8.9), 8.9)
        return taken(policy, 10.0).ids[0]

    assert [first(0), first(100)] == ["short", "short"]

    def long_one(aging: float) -> str:
        policy = ResponseRatio(aging=aging)
        policy.add(work("long", 10.0, 0.0), 0.0)
        policy.add(work("short", 1.0, 39.0), 39.0)
        return taken(policy, 39.5).ids[0]

    assert [long_one(0), long_one(100)] == ["long", "short"]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(0, 50), st.floats(0.05, 20), st.sampled_from([0.5, 1.0, 2.0])), min_size=2, max_size=40
    )
)
def test_every_pick_has_the_best_response_ratio_up_to_the_step(rows: list[tuple[float, float, float]]):
    policy = ResponseRatio(aging=0, oldest_every=10**9, burst_tokens=1e9)
    works = {f"q{n}": work(f"q{n}", s, a, utility=u) for n, (a, s, u) in enumerate(rows)}
    for one in works.values():
        policy.add(one, one.arrival)

    def ratio(one: Work, now: float) -> float:
        assert one.forecast is not None
        return one.utility * (now - one.arrival + one.forecast.seconds) / one.forecast.seconds

    for now in range(50, 50 + len(rows)):
        best = max(ratio(one, now) for one in works.values())
        chosen = works.pop(taken(policy, now).ids[0])
        assert ratio(chosen, now) >= best / 1.11
    assert not works


def test_utility_weighs():
    policy = ResponseRatio()
    policy.add(work("plain", 1.0), 0)
    policy.add(work("dear", 1.5, utility=2.0), 0)
    assert taken(policy, 1.0).ids == ("dear",)


def test_without_forecasts_all_are_as_those_that_have_ended():
    policy = ResponseRatio()
    policy.add(work("first", None), 0)
    assert taken(policy, 0.0).ids == ("first",)
    policy.settled(outcome("first", {}, started=0.0, ended=3.0))
    policy.add(work("unknown", None, 1.0), 1.0)
    policy.add(work("short", 1.0, 1.0), 1.0)
    pick = taken(policy, 1.0)
    assert pick.ids == ("short",)
    assert "3.00 s expected" in taken(policy, 1.0).why


def test_the_plan_tells_the_engine_the_order_where_it_wants_that():
    policy = ResponseRatio(engine_priority=True)
    for name in "ab":
        policy.add(work(name), 0)
    assert [taken(policy, 0.0).plan, taken(policy, 0.0).plan] == [{"priority": 1}, {"priority": 2}]
    plain = ResponseRatio()
    plain.add(work("a"), 0)
    assert taken(plain, 0.0).plan is None


# --- deadlines


def test_what_cannot_meet_its_deadline_does_not_delay_what_can():
    policy = ResponseRatio()
    policy.add(work("late", 0.5, 0.0, deadline=5.0, least=0.3), 0)
    policy.add(work("perhaps", 0.6, 0.0, deadline=5.1, least=0.2), 0)
    policy.add(work("long", 50.0, 0.0), 0)
    order = [taken(policy, 4.8) for _ in range(3)]
    assert [pick.ids[0] for pick in order] == ["long", "perhaps", "late"]
    assert "it may miss its deadline" in order[1].why
    assert "it can no longer meet its deadline" in order[2].why


def test_standings_are_right_when_more_change_than_one_pick_moves():
    policy = ResponseRatio()
    for n in range(500):
        policy.add(work(f"late{n}", 0.1, deadline=1.0, least=0.1), 0)
    policy.add(work("fine", 30.0), 0)
    assert taken(policy, 2.0).ids == ("fine",)
    assert sum(1 for _ in range(500) if "no longer" in taken(policy, 2.0).why) == 500


# --- room


def test_others_use_the_room_that_the_best_cannot():
    policy = ResponseRatio()
    policy.add(work("large", 1.0, cost={"slots": 1, "kv_tokens": 900}), 0)
    policy.add(work("small", 5.0, cost={"slots": 1, "kv_tokens": 50}), 0)
    pick = taken(policy, 1.0, [room(kv=100)])
    assert pick.ids == ("small",)
    assert "2nd of 2 waiting; 1 before it found no room" in pick.why
    assert policy.pick([room(kv=100)], 1.0) is None


def test_all_of_one_expected_time_are_tried():
    policy = ResponseRatio()
    for n in range(10):
        policy.add(work(f"large{n}", 1.0, float(n), cost={"slots": 1, "kv_tokens": 900}), float(n))
    policy.add(work("small", 1.0, 20.0, cost={"slots": 1, "kv_tokens": 50}), 20)
    pick = taken(policy, 21.0, [room(kv=100)])
    assert pick.ids == ("small",)
    assert "11th of 11 waiting; 10 before it found no room" in pick.why


def test_a_large_one_is_passed_over_so_often_and_then_room_is_kept_for_it():
    policy = ResponseRatio(most_passed=3)
    number = count()

    def small(now: float) -> None:
        policy.add(work(f"s{next(number)}", 1.0, now, cost={"slots": 1, "kv_tokens": 50}), now)

    policy.add(work("large", 1.0, cost={"slots": 1, "kv_tokens": 900}), 0)
    tight = [room("a", kv=100), room("b", kv=300)]
    for turn in range(3):
        small(float(turn))
        assert taken(policy, float(turn), tight).among == ()
    small(3.0)
    pick = taken(policy, 3.0, tight)
    assert pick.among == ("a",), "b is nearest to having room, so that it is kept"
    small(4.0)
    assert policy.pick([room("b", kv=300)], 4.0) is None, "nothing else starts there"
    pick = taken(policy, 5.0, [room("a", kv=100), room("b", kv=950)])
    assert pick.ids == ("large",)
    assert "room was kept for it" in pick.why
    assert taken(policy, 5.0, [room("b", kv=50)]).ids == ("s4",)


def test_no_room_is_kept_for_who_left_or_at_a_replica_that_went_away():
    policy = ResponseRatio(most_passed=1)
    policy.add(work("large", 1.0, cost={"slots": 1, "kv_tokens": 900}), 0)
    for n in range(4):
        policy.add(work(f"s{n}", 1.0, 1.0, cost={"slots": 1, "kv_tokens": 50}), 1)
    assert taken(policy, 1.0, [room("gone", kv=100)]).among == ()
    assert policy.pick([room("gone", kv=100)], 1.0) is None
    assert taken(policy, 2.0, [room("other", kv=100)]).among == ("other",)
    assert policy.pick([room("other", kv=100)], 100.0) is None, "after a while room is kept where a replica is"
    policy.remove("large")
    assert taken(policy, 101.0, [room("other", kv=100)]).among == ()


def test_what_could_never_fit_keeps_no_room():
    policy = ResponseRatio(most_passed=1)
    policy.add(work("never", 1.0, cost={"slots": 1, "kv_tokens": 5000}), 0)
    for n in range(10):
        policy.add(work(f"s{n}", 1.0, 1.0, cost={"slots": 1, "kv_tokens": 50}), 1)
    assert [taken(policy, 1.0).ids[0] for _ in range(10)] == [f"s{n}" for n in range(10)]


# --- starvation and fairness


@pytest.mark.parametrize("aging", [0, 4.0, 1e6])
def test_a_long_request_starts_though_shorter_ones_come_for_ever(aging: float):
    """Two short ones come for each that starts, so that by the ratio alone a new one is always ahead of it."""
    policy = ResponseRatio(aging=aging)
    policy.add(work("long", 1000.0), 0)
    picks = 0
    for turn in range(100):
        for twin in range(2):
            policy.add(work(f"s{turn}.{twin}", 0.1, float(turn)), float(turn))
        picks += 1
        if taken(policy, float(turn)).ids == ("long",):
            break
    # Its own 1,000 s are in the mean until 60 short ones have come; from then on every 16th pick is the oldest's.
    assert picks <= 64 + 16


def test_a_flood_of_one_tenant_does_not_starve_another():
    """One floods 100 to 1; the other, with the longer requests, still has its half of the tokens."""
    burst = 1000.0

    def waits(flood: int) -> list[float]:
        async def main() -> list[float]:
            house = House(policy=ResponseRatio(burst_tokens=burst), admission=Always(0, 0), max_wait_s=1e6)
            house.replica(slots=1)
            streams = []
            for turn in range(40):
                for n in range(flood):
                    house.submit(f"f{turn}.{n}", 0.1, tenant="flood", forecast=forecast(0.1, 100))
                streams.append(house.submit(f"q{turn}", 0.4, tenant="quiet", forecast=forecast(0.4, 100)))
                await asyncio.sleep(1.0)
            outcomes = [await stream.settled() for stream in streams]
            return sorted(o.started - o.arrival for o in outcomes if o.started is not None)

        return run(main())

    alone, beside = waits(0), waits(100)
    # A burst of the other's tokens (10 of 0.1 s) may go first, and one that runs; the correction by usage is small.
    assert beside[-1] <= alone[-1] + burst / 100 * 0.1 + 1.0


def test_tokens_are_set_right_when_a_request_has_ended():
    policy = ResponseRatio(burst_tokens=0)
    for tenant in ("a", "b"):
        for n in range(3):
            policy.add(work(f"{tenant}{n}", 1.0, float(n), tenant=tenant), float(n))
    assert taken(policy, 5.0).ids == ("a0",)
    assert taken(policy, 5.0).ids == ("b0",)
    policy.settled(outcome("a0", {"prompt_tokens": 50.0, "output_tokens": 950.0}))  # not 100 as predicted
    policy.settled(outcome("b0", {"prompt_tokens": 50.0, "output_tokens": 50.0}))
    assert [taken(policy, 5.0).ids[0] for _ in range(3)] == ["b1", "b2", "a1"]


def test_weights_share_out_tokens():
    policy = ResponseRatio(burst_tokens=0, tenant_weights={"paid": 3.0})
    for n in range(40):
        for tenant in ("free", "paid"):
            policy.add(work(f"{tenant}{n}", 1.0, float(n), tenant=tenant), float(n))
    first = [taken(policy, 50.0).ids[0] for _ in range(20)]
    assert sum(name.startswith("paid") for name in first) == 15


def test_what_runs_again_is_charged_once():
    policy = ResponseRatio()
    policy.add(work("other", 100.0, tenant="other"), 0)
    again = work("a")
    for attempt in range(3):
        policy.add(msgspec.structs.replace(again, attempt=attempt), 0)
        pick = taken(policy, 0.0)
        assert pick.ids == ("a",)
        assert "at 0 tokens" in pick.why


# --- what admission is told


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(2, 30)), min_size=1, max_size=5), st.sampled_from([0.0, 4.0]))
def test_how_many_are_ahead_is_about_right(groups: list[tuple[int, int]], aging: float):
    """Exact where arrivals within a bucket are even, as they are taken to be."""
    policy = ResponseRatio(aging=aging)
    there = [
        work(f"q{number}.{n}", float(seconds * 3), 100.0 * n / size)
        for number, (seconds, size) in enumerate(groups)
        for n in range(size)
    ]
    for one in sorted(there, key=lambda one: one.arrival):
        policy.add(one, one.arrival)
    new = work("new", 5.0, 100.0)
    told = policy.ahead(new, 100.0)
    patience = aging * policy._mean()

    def ratio(one: Work) -> float:
        assert one.forecast is not None
        return (100.0 - one.arrival + (patience if aging else one.forecast.seconds)) / one.forecast.seconds

    truth = sum(ratio(one) >= ratio(new) for one in there)
    assert abs(told - truth) <= len(groups) + 0.05 * len(there)
    assert policy.ahead(work("unknown", None), 100.0) == len(there)


def test_admission_hears_where_a_request_would_stand():
    async def main() -> dict[str, str]:
        house = House(policy=ResponseRatio(), admission=Foreseen(max_waiting=100, max_wait_s=100.0))
        house.replica(slots=1)
        for number in range(3):  # the pace of starts becomes known: one a second
            house.submit(f"first{number}", 1.0, forecast=forecast(1.0))
        await asyncio.sleep(2.5)
        for number in range(10):
            house.submit(f"long{number}", 1.0, forecast=forecast(5.0))
        await asyncio.sleep(0.1)
        house.submit("short", 0.2, forecast=forecast(0.2), deadline=5.0)
        house.submit("same", 1.0, forecast=forecast(5.0), deadline=12.0)
        await asyncio.sleep(60)
        return house.ended()

    ended = run(main())
    assert (ended["short"], ended["same"]) == ("done", "shed")


# --- as part of the house


@pytest.mark.parametrize("seed", range(10))
def test_every_request_ends_exactly_once_and_a_seed_gives_the_same_bytes(seed: int):
    def night() -> bytes:
        draw = random.Random(seed)

        async def main() -> bytes:
            policy = ResponseRatio(most_passed=2, burst_tokens=200, oldest_every=3)
            house = House(policy=policy, admission=Always(0, 0), max_wait_s=20.0)
            alive = [house.replica(f"r{i}", slots=draw.randint(1, 4)) for i in range(2)]

            async def client(number: int) -> None:
                await asyncio.sleep(draw.uniform(0, 20))
                now, seconds = asyncio.get_running_loop().time(), draw.uniform(0.1, 3)
                stream = house.submit(
                    f"q{number}",
                    seconds,
                    deadline=now + draw.uniform(0.1, 8) if draw.random() < 0.5 else None,
                    forecast=forecast(seconds * draw.uniform(0.5, 2), least=0.1) if draw.random() < 0.8 else None,
                    tenant=draw.choice("abc"),
                )
                if draw.random() < 0.2:
                    await asyncio.sleep(draw.uniform(0, 3))
                    stream.close()
                await stream.settled()

            async def grim() -> None:
                for generation in range(6):
                    await asyncio.sleep(draw.uniform(0.5, 4))
                    alive.pop(draw.randrange(len(alive))).die()
                    await asyncio.sleep(draw.uniform(0, 2))
                    alive.append(house.replica(f"g{generation}", slots=draw.randint(1, 4)))

            await asyncio.gather(grim(), *(client(number) for number in range(120)))
            house.ledger.check(idle=True)
            assert len({o.id for o in house.outcomes}) == 120
            return msgspec.json.encode(house.outcomes)

        return run(main())

    assert night() == night()


def test_mean_latency_is_below_that_of_first_come():
    def mean(policy: object) -> float:
        async def main() -> float:
            house = House(policy=policy)
            house.replica(slots=2)
            streams = []
            for number in range(200):
                seconds = 4.0 if number % 5 == 0 else 0.5
                streams.append(house.submit(f"q{number}", seconds, forecast=forecast(seconds)))
                await asyncio.sleep(0.5)
            outcomes = [await stream.settled() for stream in streams]
            return sum(o.ended - o.arrival for o in outcomes) / len(outcomes)

        return run(main())

    assert mean(ResponseRatio()) < 0.7 * mean(FirstCome())


def test_only_who_starts_before_it_is_ahead_of_another_tenants_request():
    """As many of a flood as the burst lets go first, and what the order then does is what was told."""
    policy = ResponseRatio(burst_tokens=300.0)
    for number in range(50):
        policy.add(work(f"a{number}", arrival=0.0, tenant="a"), 0.0)
    for _ in range(10):
        policy.settled(outcome(taken(policy, 1.0).ids[0], {"output_tokens": 100.0}))
    new = work("b", arrival=2.0, tenant="b")
    told = policy.ahead(new, 2.0)
    assert policy.ahead(work("another", arrival=2.0, tenant="a"), 2.0) >= 39
    unknown = policy.ahead(work("unknown", None, tenant="b"), 2.0)
    policy.add(new, 2.0)
    before = next(place for place in count() if taken(policy, 2.0).ids == ("b",))
    assert abs(told - before) <= 1
    assert abs(unknown - before) <= 1
    # Who has had much waits for the others, whatever its ratio.
    policy.add(work("c", arrival=2.0, tenant="c"), 2.0)
    for number in range(30):
        policy.add(work(f"b{number}", 0.1, arrival=2.0, tenant="b", tokens=1000.0), 2.0)
    taken(policy, 3.0)
    assert policy.ahead(work("late", 0.1, arrival=3.0, tenant="b"), 3.0) > 1


@pytest.mark.parametrize(
    "option", [{"aging": -1}, {"oldest_every": 1}, {"most_passed": 0}, {"burst_tokens": -1}, {"sure": float("nan")}]
)
def test_bad_options_are_named(option: dict[str, float]):
    with pytest.raises(ConfigError, match=next(iter(option))):
        ResponseRatio(**option)  # type: ignore[arg-type]


def test_every_option_is_told_with_its_default():
    docs = Path(__file__).resolve().parents[2] / "docs"
    text = "\n".join(page.read_text() for page in docs.glob("*.md"))
    for name, option in inspect.signature(ResponseRatio).parameters.items():
        default = "none" if option.default is None else f"`{option.default}`"
        assert f"| `{name}` | {default} |" in text, f"no page in docs tells the option {name} with its default"


def test_bad_weights_are_named():
    with pytest.raises(ConfigError, match="acme"):
        ResponseRatio(tenant_weights={"acme": 0.0})


def test_nothing_is_kept_of_requests_that_have_ended_once_none_waits():
    policy = ResponseRatio()
    works = [work(f"q{n}", deadline=1000.0 + n) for n in range(20)]
    for each in works:
        policy.add(each, 0.0)
    for _ in range(10):
        picked = policy.pick([room()], 1.0)
        assert isinstance(picked, Pick)
    for each in works:
        policy.remove(each.id)
    assert not list(reachable(policy, (Work,)))
