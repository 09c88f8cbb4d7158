"""What the launchers' conformance suite does not reach from outside."""

import asyncio

import pytest

from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish
from foreserve.messages import Abort, Chunks, Drain, Drained, Exit, Feed, Heartbeat, Ready, Run, Start
from foreserve.runtime.host import EngineHost
from foreserve.runtime.outbox import MessageTooLong
from tests.fleet.conformance import Ear, work


class Engine:
    """Says `words` chunks; `gate` holds it between them."""

    batching = "continuous"

    def __init__(self, ear=None):
        self.ear, self.gate, self.runs, self.closed = ear, asyncio.Event(), [], False
        self.gate.set()

    async def start(self):
        return EngineInfo(batching=self.batching, capacity={"slots": 4})

    async def run(self, work, plan=None):
        self.runs.append(work.id)
        for word in work.payload["words"]:
            await self.gate.wait()
            yield Chunk(id=work.id, index=7, data={"word": word})
        yield Chunk(id=work.id, index=7, finish=Finish(reason="stop"))

    async def run_batch(self, works, plan=None):
        self.runs.append([work.id for work in works])
        await self.gate.wait()
        yield [Chunk(id="unknown", index=0)]
        yield [Chunk(id=work.id, index=0, finish=Finish(reason="stop")) for work in works]

    async def cancel(self, request_id):
        raise RuntimeError("this engine cannot cancel")

    async def load(self):
        raise RuntimeError("this engine knows no load")

    async def close(self):
        self.closed = True
        raise RuntimeError("this engine does not close")


async def _host(engine: Engine, ear: Ear, send=None) -> EngineHost:
    host = EngineHost(lambda _: lambda: engine, send or ear.heard)
    host.handle(Start("an:engine", {}, heartbeat_s=0.05))
    await ear.first(Ready)
    return host


@pytest.fixture
def ear():
    return Ear()


async def test_one_message_a_turn_of_the_loop(ear):
    engine = Engine()
    host = await _host(engine, ear)
    engine.gate.clear()
    host.handle(Run(tuple(work(f"r{number}", "one") for number in range(10))))
    await asyncio.sleep(0.01)
    engine.gate.set()
    await ear.finish("r9")
    first = next(message for message in ear.messages if isinstance(message, Chunks))
    assert [chunk.data for chunk in first.chunks if chunk.data] == [{"word": "one"}] * 10
    host.abandon()


async def test_engine_errors_in_load_cancel_and_close_do_not_end_the_host(ear, monkeypatch):
    monkeypatch.setattr("foreserve.runtime.requests.ABORT_LIMIT_S", 0.05)
    engine = Engine()
    host = await _host(engine, ear)
    engine.gate.clear()
    host.handle(Run((work("a", "one"),)))
    await asyncio.sleep(0.01)
    host.handle(Abort(("a",)))
    assert (await ear.finish("a")).reason == "cancelled"
    assert (await ear.first(Heartbeat)).load == EngineLoad()
    host.handle(Exit())
    await asyncio.wait_for(host.closed.wait(), 5)
    assert engine.closed


async def test_the_same_attempt_twice_runs_once_and_another_attempt_is_rejected(ear):
    engine = Engine()
    host = await _host(engine, ear)
    engine.gate.clear()
    host.handle(Run((work("a", "one"),)))
    host.handle(Run((work("a", "one"),)))
    host.handle(Run((work("a", "one", attempt=1),)))
    assert "attempt 0 of this request still runs" in (await ear.finish("a", attempt=1)).error
    engine.gate.set()
    await ear.finish("a")
    assert engine.runs == ["a"]
    host.abandon()


async def test_a_second_start_is_ignored(ear):
    host = await _host(Engine(), ear)
    host.handle(Start("another:engine", {}))
    await asyncio.sleep(0.01)
    assert sum(isinstance(message, Ready) for message in ear.messages) == 1
    host.abandon()


async def test_a_paused_host_asks_the_engine_for_nothing(ear):
    host = await _host(Engine(), ear)
    host.pause()
    host.handle(Run((work("a", *"abc"),)))
    await asyncio.sleep(0.02)
    assert ear.chunks("a") == []
    host.resume()
    assert (await ear.finish("a")).reason == "stop"
    host.abandon()


async def test_a_batch_waits_for_the_tidying_up_of_the_last(ear):
    engine = Engine()
    engine.batching = "static"
    host = await _host(engine, ear)
    engine.gate.clear()
    host.handle(Run((work("a"),)))
    host.handle(Run((work("b"), work("c"))))
    await asyncio.sleep(0.01)
    assert engine.runs == [["a"]]
    engine.gate.set()
    await ear.finish("c")
    assert engine.runs == [["a"], ["b", "c"]]
    host.handle(Drain())
    await ear.first(Drained)
    host.abandon()


async def test_a_chunk_that_cannot_be_sent_ends_its_request_there(ear):
    def send(message):
        if isinstance(message, Chunks) and (len(message.chunks) > 1 or message.chunks[0].data == {"word": "long"}):
            raise MessageTooLong(9, 5)
        ear.heard(message)

    host = await _host(Engine(), ear, send)
    host.handle(Run((work("a", "x", "long", "y"), work("b", "x", "y"))))
    finish = await ear.finish("a")
    assert (finish.reason, ear.words("a")) == ("error", ["x"])
    assert "9 bytes; at most 5" in finish.error
    assert (await ear.finish("b")).reason == "stop"
    assert ear.words("b") == ["x", "y"]
    host.abandon()


class Deaf(Engine):
    """Heeds no cancel, and does not let its iterator be closed."""

    async def cancel(self, request_id):
        pass

    async def run(self, work, plan=None):
        yield Chunk(id=work.id, index=0, data={"word": "before"})
        while not self.closed:
            try:
                await self.gate.wait()
                return
            except asyncio.CancelledError:
                pass


async def test_a_request_that_cannot_be_stopped_is_taken_from_its_engine(ear, monkeypatch):
    monkeypatch.setattr("foreserve.runtime.requests.ABORT_LIMIT_S", 0.05)
    engine = Deaf()
    engine.gate.clear()
    host = await _host(engine, ear)
    host.handle(Run((work("a"),)))
    await ear.until(lambda: ear.words("a"))
    host.handle(Abort(("a",)))
    assert (await ear.finish("a")).reason == "cancelled"
    engine.gate.set()
    host.abandon()


async def test_an_abort_is_for_the_attempt_it_names(ear):
    engine = Engine()
    engine.gate.clear()
    host = await _host(engine, ear)
    host.handle(Run((work("a", "x", attempt=1), work("b", "x"))))
    host.handle(Abort(("a", "b"), attempts=(0, 0)))
    engine.gate.set()
    assert (await ear.finish("a", attempt=1)).reason == "stop"
    assert (await ear.finish("b")).reason == "cancelled"
    host.handle(Run((work("a", "x", attempt=2),)))
    host.handle(Abort(("a",)))  # any
    assert (await ear.finish("a", attempt=2)).reason == "cancelled"
    host.abandon()


async def test_credits_are_refused_by_a_static_engine(ear):
    engine = Engine()
    engine.batching = "static"
    host = await _host(engine, ear)
    host.handle(Run((work("a", credits=0), work("b"))))
    refused = await ear.finish("a")
    assert (refused.reason, "credits" in refused.error) == ("rejected", True)
    assert (await ear.finish("b")).reason == "stop"
    assert engine.runs == [["b"]]
    host.abandon()


async def test_an_engine_is_fed_nothing_of_a_request_that_has_ended(ear):
    """Which has no end of its own for the engine to forget it by."""

    class Fed(Engine):
        def __init__(self):
            super().__init__()
            self.fed, self.reading = [], asyncio.Event()

        async def feed(self, request_id, data, last):
            self.fed.append(data)
            await self.reading.wait()
            raise ValueError("this is no prompt")

    engine = Fed()
    host = await _host(engine, ear)
    engine.gate.clear()
    host.handle(Run((work("a", "one"),)))
    await asyncio.sleep(0)
    for data in "xyz":
        host.handle(Feed("a", data))
    engine.reading.set()
    assert "this is no prompt" in (await ear.finish("a")).error
    await asyncio.sleep(0.02)
    assert engine.fed == ["x"]
    host.abandon()
