"""The loop round a policy, on the virtual clock, with a fleet that takes its time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from foreserve.core import Outcome, OutcomeKind
from foreserve.fleet.autoscaler import Hybrid
from foreserve.fleet.autoscaler_wrappers import Bounded, ToZero
from foreserve.fleet.capacity import CapacityProfile
from foreserve.fleet.scaler import Scaler, needed
from foreserve.fleet.sharing import Shares
from foreserve.scaling import LoadForecast, ReplicaView, Scale, ScalingDecision, ScalingPolicy, ScalingView, Waiting
from foreserve.settings import ScalingSettings
from foreserve.simulation.clock import run
from tests.fleet.views import forecast, foreseen, replica, view

START_S = 5.0


class SlowFleet:
    """Replicas that start in `START_S` and leave in 3 s."""

    start_s = START_S

    def __init__(self, count: int = 1) -> None:
        self.replicas = {n: replica(n) for n in range(count)}
        self.asked: list[int] = []
        self._next = count

    def views(self, now: float) -> tuple[ReplicaView, ...]:
        return tuple(self.replicas.values())

    def scale(self, wanted: int) -> None:
        self.asked.append(wanted)
        active = [n for n, each in self.replicas.items() if each.phase in ("starting", "ready")]
        loop = asyncio.get_running_loop()
        for n in range(self._next, self._next + wanted - len(active)):
            self.replicas[n] = replica(n, "starting")
            loop.call_later(START_S, self._become, n, "ready")
            self._next = n + 1
        for n in active[wanted:]:
            self._become(n, "draining")
            loop.call_later(3.0, self.replicas.pop, n)

    def _become(self, n: int, phase: Any) -> None:
        if n in self.replicas and self.replicas[n].phase != "draining":
            self.replicas[n] = replica(n, phase)


class Told:
    """The dispatcher and the load in one, which say what they are told to."""

    def __init__(self) -> None:
        self.waiting = Waiting()
        self.coming: LoadForecast | None = None
        self.late: dict[str, float] = {}
        self.horizons: list[float] = []

    def load(self, now: float) -> Waiting:
        return self.waiting

    def forecast(self, horizon_s: float) -> LoadForecast | None:
        self.horizons.append(horizon_s)
        return self.coming

    def recent(self, now: float) -> dict[str, float]:
        return self.late


class Wants:
    def __init__(self, wanted: Any) -> None:
        self.wanted = wanted
        self.views: list[tuple[float, ScalingView]] = []

    def decide(self, view: ScalingView, now: float) -> Scale:
        self.views.append((now, view))
        if isinstance(self.wanted, Exception):
            raise self.wanted
        return Scale(wanted=self.wanted, why="so", figures={"need": 1.0})


class Stand:
    """A scaler with all that it needs."""

    def __init__(self, policy: ScalingPolicy, count: int = 1, shares: Shares | None = None, **words: Any) -> None:
        self.fleet, self.told = SlowFleet(count), Told()
        self.decisions: list[ScalingDecision] = []
        bounds = words.pop("bounds", (0, 8))
        name = words.pop("name", "chat")
        settings = ScalingSettings(**{"every_s": 2.0, "window_s": 60.0, **words})
        self.scaler = Scaler(
            name, policy, self.fleet, self.told, self.told, CapacityProfile(), settings, self.decisions.append, shares,
            bounds=bounds,
        )  # fmt: skip


def played(act: Callable[[], Awaitable[None]]) -> None:
    run(act(), epoch=1_000_000.0)  # type: ignore[arg-type]


def test_it_looks_every_few_seconds_and_sees_to_what_is_wanted():
    async def act() -> None:
        policy = Wants(3)
        stand = Stand(policy)
        stand.scaler.start()
        await asyncio.sleep(20.0)
        await stand.scaler.stop()
        await asyncio.sleep(20.0)
        assert [now for now, _ in policy.views] == [2.0 * n for n in range(10)]
        assert len(stand.fleet.replicas) == 3
        first = stand.decisions[0]
        assert (first.active, first.wanted, first.granted, first.why) == (1, 3, 3, "so")
        assert first.at == 1_000_000.0

    played(act)


def test_the_forecast_is_of_when_a_replica_would_be_up():
    async def act() -> None:
        stand = Stand(Wants(1))
        stand.scaler.tick()
        assert stand.told.horizons == [START_S + 2.0]

    played(act)


def test_a_decision_is_told_when_it_changes_something_and_once_per_window():
    async def act() -> None:
        policy = Wants(1)
        stand = Stand(policy)
        stand.scaler.start()
        await asyncio.sleep(150.0)
        policy.wanted = 2
        await asyncio.sleep(20.0)
        await stand.scaler.stop()
        assert [each.at - 1_000_000.0 for each in stand.decisions] == [0.0, 60.0, 120.0, 150.0]
        assert stand.scaler.last is not None
        assert stand.scaler.last.active == 2

    played(act)


def test_the_same_number_is_told_again_where_it_changes_something():
    """One has been lost since."""

    async def act() -> None:
        stand = Stand(Wants(2), count=2)
        stand.scaler.tick()
        del stand.fleet.replicas[0]
        stand.scaler.tick()
        stand.scaler.tick()
        assert [(each.active, each.granted) for each in stand.decisions] == [(2, 2), (1, 2)]

    played(act)


@pytest.mark.parametrize("wanted", [ValueError("no"), -1, 2.5])
def test_a_policy_that_fails_is_logged_and_holds(wanted: Any, caplog: pytest.LogCaptureFixture):
    async def act() -> None:
        policy = Wants(wanted)
        stand = Stand(policy, count=2)
        with caplog.at_level(logging.ERROR):
            for _ in range(5):
                assert stand.scaler.tick().granted == 2
        assert "its scaling policy failed: ValueError" in stand.decisions[0].why
        assert len(caplog.records) == 1, "the same failure is told once"
        policy.wanted = 3
        assert stand.scaler.tick().granted == 3

    played(act)


def test_what_goes_wrong_about_a_look_does_not_end_the_looking(caplog: pytest.LogCaptureFixture):
    async def act() -> None:
        stand = Stand(Wants(2))
        stand.fleet.views = lambda now: 1 / 0  # type: ignore[assignment, method-assign, return-value]
        stand.scaler.start()
        await asyncio.sleep(5.0)
        del stand.fleet.views
        await asyncio.sleep(5.0)
        await stand.scaler.stop()
        assert stand.fleet.asked[-1] == 2

    played(act)
    assert "could not be looked at" in caplog.text


def test_it_goes_to_zero_when_idle_and_back_at_once_when_poked():
    async def act() -> None:
        stand = Stand(Bounded(ToZero(Hybrid(), idle_s=30.0)), idle_s=30.0)
        stand.scaler.start()
        await asyncio.sleep(29.0)
        assert len(stand.fleet.replicas) == 1
        await asyncio.sleep(10.0)
        assert not stand.fleet.replicas
        await asyncio.sleep(0.5)
        stand.told.waiting = Waiting(count=1)
        stand.scaler.poke()
        stand.scaler.poke()
        asked = len(stand.fleet.asked)
        await asyncio.sleep(0.0)
        assert [each.phase for each in stand.fleet.replicas.values()] == ["starting"]
        assert len(stand.fleet.asked) == asked + 1, "two pokes of one turn are one look"
        assert stand.scaler.last is not None
        assert stand.scaler.last.why.startswith("one waits and there is no replica")
        await stand.scaler.stop()

    played(act)


def test_what_ended_between_two_looks_was_not_idle():
    async def act() -> None:
        policy = Wants(1)
        stand = Stand(policy)
        stand.scaler.start()
        await asyncio.sleep(9.0)
        ended = Outcome(id="r", service="chat", kind=OutcomeKind.DONE, arrival=8.0, started=8.5, ended=9.0)
        stand.scaler.ended(ended)
        await asyncio.sleep(3.5)
        await stand.scaler.stop()
        assert [view.idle_s for _, view in policy.views][-2:] == [1.0, 3.0]

    played(act)


def test_requests_that_come_at_none_do_not_each_have_it_look():
    """The machine may have no room for minutes, while thousands come."""

    async def act() -> None:
        policy = Wants(0)
        stand = Stand(policy, count=0, every_s=1000.0)
        stand.scaler.start()
        await asyncio.sleep(10.0)
        begun = len(policy.views)
        for _ in range(1000):
            stand.scaler.poke()
            await asyncio.sleep(0.001)
        at = [now for now, _ in policy.views[begun:]]
        assert at[0] == 10.0, "the first is answered at once"
        assert 5 <= len(at) <= 12
        await stand.scaler.stop()

    played(act)


def test_pokes_after_the_end_do_nothing():
    async def act() -> None:
        stand = Stand(Wants(1))
        stand.scaler.start()
        await asyncio.sleep(1.0)
        await stand.scaler.stop()
        asked = len(stand.fleet.asked)
        stand.scaler.poke()
        await asyncio.sleep(1.0)
        await stand.scaler.stop()
        assert len(stand.fleet.asked) == asked

    played(act)


def test_capacity_is_learned_and_asked_for_at_the_mix_of_late():
    async def act() -> None:
        policy = Wants(1)
        stand = Stand(policy)
        stand.fleet.replicas[0] = replica(0, running=8)
        stand.told.late = {"requests": 4.0}
        stand.scaler.start()
        for n in range(160):
            await asyncio.sleep(0.25)
            now = 0.25 * (n + 1)
            stand.scaler.ended(
                Outcome(id=str(n), service="chat", kind=OutcomeKind.DONE, arrival=0.0, started=now - 2.0, ended=now)
            )
        await stand.scaler.stop()
        capacity = policy.views[-1][1].capacity
        assert capacity is not None
        assert capacity.per_s["requests"] == pytest.approx(4.0, rel=0.1)

    played(act)


def test_two_services_share_one_replica_and_each_is_served():
    async def act() -> None:
        shares = Shares(replicas=1)
        policies = {name: Bounded(ToZero(Hybrid(), idle_s=600.0)) for name in ("a", "b")}
        a = Stand(policies["a"], 1, shares, name="a")
        b = Stand(policies["b"], 0, shares, name="b")
        a.scaler.start()
        b.scaler.start()
        await asyncio.sleep(10.0)
        b.told.waiting = Waiting(count=1, oldest_s=0.1)
        b.scaler.poke()
        await asyncio.sleep(1.0)
        assert [each.phase for each in a.fleet.replicas.values()] == ["draining"]
        assert not b.fleet.replicas, "there is no room yet"
        await asyncio.sleep(6.0)
        assert not a.fleet.replicas
        assert [each.phase for each in b.fleet.replicas.values()] == ["starting"]
        await asyncio.sleep(5.0)
        assert [each.phase for each in b.fleet.replicas.values()] == ["ready"]
        told = [each.shared for each in b.decisions if each.shared]
        assert told[0] == "1 as soon as a has given up what it holds"
        await a.scaler.stop()
        await b.scaler.stop()

    played(act)


@pytest.mark.parametrize(
    ("stand", "scale", "need"),
    [
        (view(1), Scale(wanted=3, why=""), 3.0),
        (view(3), Scale(wanted=3, why=""), 0.0),
        (view(1), Scale(wanted=1, why="", figures={"need": 0.0}), 0.0),
        (foreseen(5.0, [replica(0, running=4)]), Scale(wanted=1, why="", figures={"need": 0.2}), 0.5),
        (foreseen(5.0, 1), Scale(wanted=4, why="", figures={"need": 0.6}), 4.0),
        (foreseen(5.0, 4), Scale(wanted=4, why="", figures={"need": 0.6}), 0.6),
        (view(0, waiting=Waiting(count=1)), Scale(wanted=0, why="", figures={"need": 0.0}), 0.05),
    ],
    ids=[
        "it tells none",
        "it tells none, and is idle",
        "idle",
        "running",
        "it waits for more",
        "it only keeps them",
        "something waits",
    ],
)
def test_what_a_service_needs_of_a_shared_machine(stand: ScalingView, scale: Scale, need: float):
    assert needed(stand, scale) == need


def test_runs_are_equal():
    def once() -> list[Any]:
        decisions: list[ScalingDecision] = []

        async def act() -> None:
            stand = Stand(Bounded(ToZero(Hybrid(), idle_s=30.0)))
            stand.scaler.start()
            stand.told.coming = forecast({"requests": 600.0, "tokens": 100.0})
            await asyncio.sleep(30.0)
            stand.told.waiting = Waiting(count=90, seconds=900.0, predicted_wait_s=9.0)
            await asyncio.sleep(100.0)
            await stand.scaler.stop()
            decisions.extend(stand.decisions)

        played(act)
        return [msgspec.to_builtins(each) for each in decisions]

    first = once()
    assert first == once()
    assert len({each["wanted"] for each in first}) > 1
