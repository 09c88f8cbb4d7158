"""When an engine lets its weights on a device go, and that nothing reaches it before it has them again."""

import asyncio

import pytest

from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, WeightsRef
from foreserve.errors import EngineStartError
from foreserve.messages import Abort, Chunks, Drain, Drained, Ready, Rested, Run, Start, Woke
from foreserve.runtime import leases
from foreserve.runtime.host import EngineHost
from tests.fleet.conformance import Ear, work
from tests.fleet.holding import until


class Engine:
    """Answers once it is let; tells whether its weights were there when it was asked."""

    def __init__(self, weights):
        self.weights, self.asked = weights, []

    async def start(self):
        return EngineInfo(batching="continuous", capacity={"slots": 4})

    async def run(self, work, plan=None):
        self.asked.append((work.id, self.weights.there))
        yield Chunk(id=work.id, index=0, finish=Finish(reason="stop"))

    async def cancel(self, request_id):
        pass

    async def load(self):
        return EngineLoad()

    async def close(self):
        pass


class Weights:
    """As `placed.Placed`, in a test's hands."""

    def __init__(self):
        self.there, self.fails, self.rested = True, "", 0
        self.go = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def rest(self):
        self.there = False
        self.rested += 1
        return True

    def wake(self, timeout_s=None):
        asyncio.run_coroutine_threadsafe(self.go.wait(), self._loop).result(10)
        if self.fails:
            raise EngineStartError(self.fails)
        self.there = True
        return True


@pytest.fixture
async def made(monkeypatch):
    ear, weights = Ear(), Weights()
    engine = Engine(weights)
    monkeypatch.setattr(leases, "begin", lambda refs: None)
    monkeypatch.setattr(leases, "rest", lambda: [weights] if weights.rest() else [])
    host = EngineHost(lambda _: lambda: engine, ear.heard)
    ref = WeightsRef(name="w", source="/w", device="host-copy")
    host.handle(Start("an:engine", {}, heartbeat_s=0.01, weights=(ref,), rest_s=0.05))
    await ear.first(Ready)
    yield host, ear, engine, weights
    host.abandon()


def ends(ear):
    told = [message for message in ear.messages if isinstance(message, Chunks)]
    return [chunk.finish.reason for message in told for chunk in message.chunks if chunk.finish]


async def test_a_request_waits_until_the_weights_are_there_again(made):
    host, ear, engine, weights = made
    await ear.first(Rested)
    assert not weights.there
    host.handle(Run((work("a"), work("b"))))
    await asyncio.sleep(0.05)
    assert engine.asked == []
    weights.go.set()
    await until(lambda: len(ends(ear)) == 2)
    assert engine.asked == [("a", True), ("b", True)]
    assert (await ear.first(Woke)).copied


async def test_it_rests_once_in_each_idleness_and_not_while_it_is_asked(made):
    host, ear, _, weights = made
    weights.go.set()
    await ear.first(Rested)
    await asyncio.sleep(0.2)
    assert weights.rested == 1
    host.handle(Run((work("a"),)))
    await until(lambda: ends(ear))
    await until(lambda: weights.rested == 2)


async def test_who_gives_up_while_it_wakes_gets_its_finish_and_never_reaches_the_engine(made):
    host, ear, engine, weights = made
    await ear.first(Rested)
    host.handle(Run((work("a"), work("b"))))
    host.handle(Abort(("a",)))
    await until(lambda: ends(ear) == ["cancelled"])
    weights.go.set()
    await until(lambda: len(ends(ear)) == 2)
    assert engine.asked == [("b", True)]


async def test_weights_that_cannot_be_had_again_end_the_engine_in_words(made):
    host, ear, _, weights = made
    await ear.first(Rested)
    weights.fails = "the device is full"
    weights.go.set()
    host.handle(Run((work("a"),)))
    await host.closed.wait()
    assert host.failed == "the device is full"  # what it was given runs again elsewhere: it had reached no engine


async def test_a_resting_replica_drains_at_once(made):
    host, ear, _, _ = made
    await ear.first(Rested)
    host.handle(Drain())
    await ear.first(Drained)


class OwnMeans(Engine):
    """Has a device's memory by itself; `can` tells whether it lets go of it."""

    def __init__(self, can=True):
        super().__init__(weights=self)
        self.can, self.there, self.rested, self.fails = can, True, 0, ""

    async def rest(self):
        self.rested += 1
        self.there = not self.can
        return self.can

    async def wake(self):
        if self.fails:
            raise RuntimeError(self.fails)
        self.there = True


async def hosted(engine, ear):
    host = EngineHost(lambda _: lambda: engine, ear.heard)
    host.handle(Start("an:engine", {}, heartbeat_s=0.01, rest_s=0.05))
    await ear.first(Ready)
    return host


async def test_an_engine_rests_and_wakes_by_its_own_means():
    ear, engine = Ear(), OwnMeans()
    host = await hosted(engine, ear)
    await ear.first(Rested)
    assert not engine.there
    host.handle(Run((work("a"),)))
    await until(lambda: ends(ear))
    assert engine.asked == [("a", True)]
    assert (await ear.first(Woke)).copied
    host.abandon()


async def test_an_engine_that_does_not_let_go_is_asked_once_in_each_idleness():
    ear, engine = Ear(), OwnMeans(can=False)
    host = await hosted(engine, ear)
    await until(lambda: engine.rested == 1)
    await asyncio.sleep(0.2)
    host.handle(Run((work("a"),)))
    await until(lambda: ends(ear))
    assert engine.rested == 1
    assert not [message for message in ear.messages if isinstance(message, Rested | Woke)]
    host.abandon()


async def test_an_engine_that_does_not_wake_is_ended_in_words():
    ear, engine = Ear(), OwnMeans()
    host = await hosted(engine, ear)
    await ear.first(Rested)
    engine.fails = "no memory on the device"
    host.handle(Run((work("a"),)))
    await host.closed.wait()
    assert host.failed == "no memory on the device"
