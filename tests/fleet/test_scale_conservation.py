"""Random scaling, crashes, requests and departures on a virtual clock: nothing is lost, who leaves is given nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from foreserve.core import Chunk, EngineSpec, Outcome, OutcomeKind, Work
from foreserve.dispatch.admission import Bounded
from foreserve.dispatch.batching import FirstCome
from foreserve.dispatch.dispatcher import Dispatcher
from foreserve.dispatch.ledger import Ledger
from foreserve.dispatch.placement import LeastRequests
from foreserve.dispatch.stream import Stream
from foreserve.fleet.inline import InlineLauncher
from foreserve.fleet.replica import Replica, State
from foreserve.fleet.replicas import Replicas
from foreserve.ports import Decoded, Resumed
from foreserve.simulation.clock import run
from tests.fleet.engines import Say

MOST = 4
START_S = 3.0
WORDS = tuple("abcdefghij")


class Told:
    """The decoder of a `Say`, which can be said on."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self.heard: list[str] = []

    def feed(self, chunk: Chunk) -> Decoded:
        if chunk.data is None:
            return Decoded()
        self.heard.append(chunk.data["word"])
        return Decoded(events=[chunk.data["word"]])

    def resume(self) -> Resumed | None:
        rest = msgspec.structs.replace(self._say, words=self._say.words[len(self.heard) :])
        return Resumed(payload=rest, steps=len(self.heard))

    def usage(self) -> dict[str, float]:
        return {}


class House:
    def __init__(self, least: int, drain_s: float) -> None:
        self.ledger = Ledger()
        self.outcomes: dict[str, Outcome] = {}
        self.left: set[str] = set()
        self.streams: dict[str, Stream] = {}
        self.readers: list[asyncio.Task[None]] = []
        self.dispatcher = Dispatcher(
            "test",
            FirstCome(),
            LeastRequests(),
            Bounded(max_waiting=1000, max_wait_s=1e6),
            self.ledger,
            max_wait_s=1e6,
            settled=self._settled,
        )
        spec = EngineSpec(factory="tests.fleet.engines:Echo", options={"slots": 2, "start_s": START_S})
        self.launcher = InlineLauncher()
        self.replicas = Replicas(
            "test", lambda: [spec] * MOST, self.launcher, self.dispatcher, lambda _: None, least=least, drain_s=drain_s
        )

    def _settled(self, outcome: Outcome) -> None:
        assert outcome.id not in self.outcomes, "it ended twice"
        self.outcomes[outcome.id] = outcome

    def submit(self, step_s: float) -> None:
        now = asyncio.get_running_loop().time()
        say = Say(words=WORDS, step_s=step_s)
        name = f"q{len(self.streams)}"
        stream = Stream(name, lambda: Told(say), bound=100, stall_s=1e6, on_leave=self.dispatcher.leave)
        self.streams[name] = stream
        self.dispatcher.submit(Work(id=name, payload=say, cost={"slots": 1}, arrival=now), stream)
        self.readers.append(asyncio.create_task(self._read(name, stream)))

    async def _read(self, name: str, stream: Stream) -> None:
        heard = [word async for words in stream for word in words]
        whole = self.outcomes[name].kind is OutcomeKind.DONE
        assert heard == list(WORDS) if whole else heard == list(WORDS[: len(heard)]), "nothing twice, nothing left out"

    def leave(self, draw: int) -> None:
        open_now = [name for name in self.streams if name not in self.outcomes]
        if open_now:
            name = open_now[draw % len(open_now)]
            self.left.add(name)
            self.streams[name].close()

    def kill(self, draw: int, states: Sequence[State]) -> bool:
        alive = [one for one in self.replicas.all if one.connection is not None and one.state in states]
        if alive:
            alive[draw % len(alive)].connection.kill()  # type: ignore[union-attr]
        return bool(alive)


given_to: list[tuple[str, State]] = []
_run = Replica.run


def checked_run(self: Replica, works: Sequence[Work], plan: Any) -> None:
    given_to.append((self.name, self.state))
    _run(self, works, plan)


def play(
    least: int, drain_s: float, steps: Sequence[tuple[str, float]], *, stop_at_once: bool = False
) -> dict[str, Outcome]:
    async def main() -> dict[str, Outcome]:
        house = House(least, drain_s)
        await house.replicas.start()
        wanted = least
        for what, amount in steps:
            match what:
                case "scale":
                    # Nobody scales to none while something is open: a policy never does.
                    wanted = max(int(amount), min(least, 1), 1 if len(house.outcomes) < len(house.streams) else 0)
                    house.replicas.scale(wanted)
                case "submit":
                    house.submit(amount)
                case "leave":
                    house.leave(int(amount))
                case "crash":
                    house.kill(int(amount), [State.STARTING, State.READY, State.ISOLATED, State.DRAINING])
                case "crash leaving":
                    house.kill(int(amount), [State.ISOLATED, State.DRAINING])
                case "pass":
                    await asyncio.sleep(amount)
            assert len([one for one in house.replicas.all if one.state is not State.GONE]) <= MOST
            views = house.replicas.views(asyncio.get_running_loop().time())
            assert sum(view.phase in ("starting", "ready") for view in views) == house.replicas.wanted
        if stop_at_once:
            house.dispatcher.give_up("stopping")
            await house.replicas.stop(10.0)
            house.dispatcher.give_up("stopping")
        await asyncio.wait_for(asyncio.gather(*house.readers), 1e5)
        house.ledger.check(idle=True)
        if not stop_at_once:
            wanted = max(house.replicas.wanted, wanted)  # the first request may have wanted one
            await asyncio.sleep(drain_s + 300.0)
            assert [one.state for one in house.replicas.all] == [State.READY] * house.replicas.wanted
            assert house.replicas.wanted == wanted
            for one in house.replicas.all:
                room = one.room()
                assert room is not None
                assert (dict(room.free), dict(one.held)) == ({"slots": 2}, {})
        view = house.dispatcher.view()
        assert (view.waiting, view.running) == (0, 0)
        await house.replicas.stop(10.0)
        await house.launcher.close()
        assert not house.replicas._tasks
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for name, outcome in house.outcomes.items():
            assert (outcome.kind is OutcomeKind.CANCELLED) <= (name in house.left)
        assert house.outcomes.keys() == house.streams.keys()
        return house.outcomes

    given_to.clear()
    with patch.object(Replica, "run", checked_run):
        outcomes = run(main())
    assert {state for _, state in given_to} <= {State.READY}
    return outcomes


SCALE = st.tuples(st.just("scale"), st.integers(0, MOST).map(float))
SUBMIT = st.tuples(st.just("submit"), st.sampled_from([0.01, 0.2, 1.0, 5.0]))
LEAVE = st.tuples(st.just("leave"), st.integers(0, 20).map(float))
PASS = st.tuples(st.just("pass"), st.sampled_from([0.0, 0.001, 0.5, START_S, 20.0]))
CRASH = st.tuples(st.sampled_from(["crash", "crash leaving"]), st.integers(0, 7).map(float))


@settings(max_examples=150, deadline=None)
@given(
    least=st.integers(0, 2),
    drain_s=st.sampled_from([0.5, 10.0, 300.0]),
    steps=st.lists(st.one_of(SCALE, SUBMIT, SUBMIT, LEAVE, PASS), max_size=40),
)
def test_scaling_loses_nothing(least: int, drain_s: float, steps: list[tuple[str, float]]):
    outcomes = play(least, drain_s, steps)
    lost = [outcome for outcome in outcomes.values() if outcome.kind not in (OutcomeKind.DONE, OutcomeKind.CANCELLED)]
    assert lost == []
    assert {outcome.again for outcome in outcomes.values()} <= {"", "replica left", "replica left, resumed"}


@settings(max_examples=150, deadline=None)
@given(
    least=st.integers(0, 2),
    drain_s=st.sampled_from([0.5, 10.0, 300.0]),
    steps=st.lists(st.one_of(SCALE, SUBMIT, SUBMIT, LEAVE, PASS, CRASH), max_size=40),
)
def test_crashes_while_scaling_are_retried_once_and_every_request_ends(
    least: int, drain_s: float, steps: list[tuple[str, float]]
):
    for outcome in play(least, drain_s, steps).values():
        if outcome.kind is OutcomeKind.FAILED:
            assert outcome.code == "unavailable" or (outcome.code == "replica_lost" and outcome.attempt >= 1)
        else:
            assert outcome.kind in (OutcomeKind.DONE, OutcomeKind.CANCELLED)


@settings(max_examples=100, deadline=None)
@given(
    least=st.integers(0, 2),
    drain_s=st.sampled_from([0.5, 300.0]),
    steps=st.lists(st.one_of(SCALE, SUBMIT, LEAVE, PASS, CRASH), max_size=20),
)
def test_stopping_in_the_middle_of_it_leaves_nothing(least: int, drain_s: float, steps: list[tuple[str, float]]):
    play(least, drain_s, steps, stop_at_once=True)


def test_one_that_is_taken_back_just_when_it_was_to_end_stays():
    for turns in range(6):
        steps = [("scale", 1.0), *[("pass", 0.0)] * turns, ("submit", 0.01), ("scale", 2.0), ("submit", 0.01)]
        assert {outcome.again for outcome in play(2, 0.5, steps).values()} == {""}


def test_some_are_moved_taken_back_and_lost_in_these_plays():
    submit = [("submit", 5.0)] * 3
    moved = play(2, 0.5, [*submit, ("pass", 0.5), ("scale", 1.0), ("pass", 20.0), ("leave", 0.0)])
    assert "replica left, resumed" in {outcome.again for outcome in moved.values()}
    lost = play(2, 300.0, [*submit, ("pass", 0.5), ("scale", 1.0), ("crash leaving", 0.0)])
    assert "replica lost" in {outcome.again for outcome in lost.values()}
