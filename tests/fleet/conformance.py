"""What every launcher must do. A launcher's test module subclasses `Conformance` and gives a `launcher` fixture."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from foreserve.core import Chunk, EngineLoad, EngineSpec, Work
from foreserve.messages import (
    Abort,
    Chunks,
    Credit,
    Drain,
    Drained,
    Exit,
    Feed,
    FromWorker,
    Heartbeat,
    Ready,
    Run,
    StartFailed,
)

ENGINES = Path(__file__).with_name("engines.py")
LIMIT_S = 30.0


def spec(engine: str = "Echo", liveness_s: float = 30.0, start_limit_s: float = 30.0, **options) -> EngineSpec:
    return EngineSpec(
        factory=f"{ENGINES}:{engine}", options=options, liveness_s=liveness_s, start_limit_s=start_limit_s
    )


def work(request_id: str, *words: str, step_s: float = 0.0, fault: str = "", data: bytes = b"", **terms) -> Work:
    payload = {"words": words, "step_s": step_s, "fault": fault, "data": data}
    return Work(id=request_id, payload=payload, cost={"slots": 1}, arrival=0.0, **terms)


class Ear:
    """A listener that keeps everything it hears."""

    def __init__(self) -> None:
        self.messages: list[FromWorker] = []
        self.exits: list[str] = []
        self._news = asyncio.Event()

    def heard(self, message: FromWorker) -> None:
        assert not self.exits, "a message after the exit"
        self.messages.append(message)
        self._news.set()

    def exited(self, reason: str) -> None:
        self.exits.append(reason)
        self._news.set()

    async def until(self, true, limit_s: float = LIMIT_S) -> None:
        async with asyncio.timeout(limit_s):
            while not true():
                self._news.clear()
                await self._news.wait()

    async def first(self, kind: type):
        await self.until(lambda: any(isinstance(message, kind) for message in self.messages))
        return next(message for message in self.messages if isinstance(message, kind))

    async def gone(self) -> str:
        await self.until(lambda: self.exits)
        return self.exits[0]

    def chunks(self, request_id: str, attempt: int = 0) -> list[Chunk]:
        return [
            chunk
            for message in self.messages
            if isinstance(message, Chunks)
            for chunk in message.chunks
            if chunk.id == request_id and chunk.attempt == attempt
        ]

    def words(self, request_id: str, attempt: int = 0) -> list[str]:
        return [chunk.data["word"] for chunk in self.chunks(request_id, attempt) if chunk.data is not None]

    async def finish(self, request_id: str, attempt: int = 0, limit_s: float = LIMIT_S):
        """Waits for the end of a request; checks that there is exactly one, at the end, and that indices count up."""
        await self.until(lambda: any(chunk.finish for chunk in self.chunks(request_id, attempt)), limit_s)
        chunks = self.chunks(request_id, attempt)
        assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
        assert [chunk.finish is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        return chunks[-1].finish


class Conformance:
    """Subclass in a test module, with an async fixture `launcher` that closes it at the end."""

    carries_objects = False
    """Whether an answer's data is passed as it is, so that anything can be sent."""

    @pytest.fixture
    def ear(self) -> Ear:
        return Ear()

    async def ready(self, launcher, ear: Ear, engine: str = "Echo", **options):
        connection = await launcher.launch("echo-1", spec(engine, **options), ear)
        await ear.first(Ready)
        return connection

    # --- life

    async def test_start_tells_what_the_engine_is(self, launcher, ear):
        await self.ready(launcher, ear, slots=3, fact="ä")
        ready = await ear.first(Ready)
        assert ready.info.capacity == {"slots": 3}
        assert ready.info.facts == {"fact": "ä"}
        assert ready.pid > 0

    @pytest.mark.parametrize(
        ("engine", "options", "words"),
        [
            ("Echo", {"start_error": "too little memory: 3 GiB"}, ["too little memory: 3 GiB"]),
            ("NeedsMissing", {}, ["not_a_package_anywhere", "not installed in", "-m pip install"]),
            ("Nothing", {}, ["has no 'Nothing'", "StaticEcho"]),
            ("not_callable", {}, ["is a int, not a class or function"]),
            ("Echo", {"slot": 3}, ["'slot'", "valid options: slots, start_error"]),
        ],
    )
    async def test_failed_start_is_told_in_words_and_ends_the_replica(self, launcher, ear, engine, options, words):
        await launcher.launch("echo-1", spec(engine, **options), ear)
        failed = await ear.first(StartFailed)
        for word in words:
            assert word in failed.reason
        assert failed.reason in await ear.gone()
        assert [type(message) for message in ear.messages] == [StartFailed]

    async def test_missing_file(self, launcher, ear):
        await launcher.launch("x", EngineSpec(factory="/nowhere/engine.py:Echo"), ear)
        assert (await ear.first(StartFailed)).reason == "no such file: /nowhere/engine.py"
        await ear.gone()

    async def test_start_limit(self, launcher, ear):
        await launcher.launch("echo-1", spec(start_s=60.0, start_limit_s=0.3), ear)
        assert await ear.gone() == "not ready within 0.3 s"
        assert ear.messages == []

    async def test_heartbeats_tell_the_load(self, launcher, ear):
        connection = await launcher.launch("echo-1", spec(liveness_s=2.0), ear)
        await ear.first(Ready)
        connection.send(Run((work("a", *"abcdefgh", step_s=0.2),)))
        await ear.until(lambda: Heartbeat(load=EngineLoad(running=1)) in ear.messages)
        await ear.finish("a")
        assert not ear.exits

    async def test_drain_finishes_what_runs_and_refuses_what_comes(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        connection.send(Run((work("a", "one", "two", step_s=0.1),)))
        connection.send(Drain())
        connection.send(Run((work("b", "one"),)))
        await ear.first(Drained)
        assert (await ear.finish("a")).reason == "stop"
        refused = await ear.finish("b")
        assert refused.reason == "rejected"
        assert "draining" in refused.error
        assert isinstance(ear.messages[-1], Drained)

    async def test_drain_of_an_idle_replica(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        connection.send(Drain())
        await ear.first(Drained)

    async def test_exit_message_ends_it(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        connection.send(Exit())
        await ear.gone()

    async def test_stop_tells_the_exit_once(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        await connection.stop(5.0)
        assert ear.exits == ["stopped"]
        connection.kill()
        connection.send(Run((work("a", "x"),)))
        await connection.stop(1.0)
        await asyncio.sleep(0.05)
        assert len(ear.exits) == 1

    async def test_stop_while_it_starts(self, launcher, ear):
        connection = await launcher.launch("echo-1", spec(start_s=60.0), ear)
        await connection.stop(2.0)
        assert ear.exits == ["stopped"]

    async def test_kill_is_an_exit_without_last_messages(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        connection.send(Run((work("a", *"abcdef", step_s=0.2),)))
        await ear.until(lambda: ear.words("a"))
        connection.kill()
        assert await ear.gone() == "killed"
        connection.send(Abort(("a",)))
        await asyncio.sleep(0.05)
        assert len(ear.exits) == 1
        assert not any(chunk.finish for chunk in ear.chunks("a"))

    async def test_close_ends_all(self, launcher):
        ears = [Ear(), Ear()]
        for ear in ears:
            await self.ready(launcher, ear)
        await launcher.close()
        assert [len(ear.exits) for ear in ears] == [1, 1]

    # --- answers

    async def test_a_stream_in_order(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        connection.send(Run((work("a", "one", "two", "three", attempt=2),), plan={"setting": 4}))
        finish = await ear.finish("a", attempt=2)
        assert finish.reason == "stop"
        assert finish.usage["words"] == 3
        assert ear.words("a", attempt=2) == ["one", "two", "three"]
        assert ear.chunks("a", attempt=2)[0].data["plan"] == {"setting": 4}

    async def test_many_at_once(self, launcher, ear):
        connection = await self.ready(launcher, ear, slots=200)
        words = [f"w{index}" for index in range(20)]
        for number in range(200):
            connection.send(Run((work(f"r{number}", *words, step_s=0.001 * (number % 3)),)))
        for number in range(200):
            assert (await ear.finish(f"r{number}")).reason == "stop"
            assert ear.words(f"r{number}") == words

    async def test_one_turn_of_the_engine_is_one_message(self, launcher, ear):
        connection = await self.ready(launcher, ear, slots=50)
        connection.send(Run(tuple(work(f"r{number}", "one", step_s=0.1) for number in range(50))))
        for number in range(50):
            await ear.finish(f"r{number}")
        assert sum(isinstance(message, Chunks) for message in ear.messages) < 50

    async def test_a_big_payload_and_a_big_answer(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        data = bytes(range(256)) * 20_000
        connection.send(Run((work("a", data=data),)))
        await ear.finish("a")
        assert ear.chunks("a")[0].data == data[::-1]

    async def test_a_batch_runs_together(self, launcher, ear):
        connection = await self.ready(launcher, ear, "StaticEcho")
        connection.send(Run((work("a", "one"), work("b", "one", "two")), plan=7))
        assert (await ear.finish("a")).usage == (await ear.finish("b")).usage == {"batch": 2}
        assert ear.words("b") == ["one", "two"]
        assert ear.chunks("b")[0].data["plan"] == 7

    async def test_batches_follow_each_other(self, launcher, ear):
        connection = await self.ready(launcher, ear, "StaticEcho")
        connection.send(Run((work("a", "one", "two", step_s=0.05),)))
        connection.send(Run((work("b", "one"), work("c", "one"))))
        connection.send(Abort(("c",)))
        for request_id in "abc":
            await ear.finish(request_id)
        ends = [chunk.id for m in ear.messages if isinstance(m, Chunks) for chunk in m.chunks if chunk.finish]
        assert ends == ["c", "a", "b"]  # c had not begun
        assert ear.chunks("c")[-1].finish.reason == "cancelled"

    async def test_an_engine_that_has_failed_ends_like_a_process_that_exits(self, launcher, ear):
        connection = await self.ready(launcher, ear, "Fails")
        connection.send(Run((work("lost"),)))
        await ear.until(lambda: ear.words("lost"))
        connection.send(Run((work("a", fault="break"),)))
        assert "it has lost its means" in await ear.gone()
        assert (await ear.finish("a")).error == "it broke"  # told before the end
        assert [chunk.finish for chunk in ear.chunks("lost")] == [None]

    # --- abort

    async def test_abort_in_the_middle(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        connection.send(Run((work("a", *"abcdefghij", step_s=0.05), work("b", "one", step_s=0.3))))
        await ear.until(lambda: ear.words("a"))
        connection.send(Abort(("a",)))
        connection.send(Abort(("a",)))
        assert (await ear.finish("a")).reason == "cancelled"
        assert len(ear.words("a")) < 10
        assert (await ear.finish("b")).reason == "stop"

    async def test_abort_before_it_has_begun(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        connection.send(Run((work("a", *"abc", step_s=0.05),)))
        connection.send(Abort(("a",)))
        assert (await ear.finish("a")).reason == "cancelled"

    async def test_abort_after_the_end_and_of_unknown_ids_does_nothing(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        connection.send(Run((work("a", "one"),)))
        await ear.finish("a")
        connection.send(Abort(("a", "never heard of")))
        connection.send(Run((work("b", "one"),)))
        await ear.finish("b")
        assert (await ear.finish("a")).reason == "stop"
        assert ear.chunks("never heard of") == []

    async def test_abort_of_one_in_a_batch(self, launcher, ear):
        connection = await self.ready(launcher, ear, "StaticEcho")
        connection.send(Run((work("a", *"abcdefgh", step_s=0.05), work("b", "one", "two", "three"))))
        await ear.until(lambda: ear.words("a"))
        connection.send(Abort(("a",)))
        assert (await ear.finish("a")).reason == "cancelled"
        assert (await ear.finish("b")).reason == "stop"

    async def test_the_same_id_again_under_the_next_attempt(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        connection.send(Run((work("a", "one", "two", step_s=0.02),)))
        assert (await ear.finish("a")).reason == "stop"
        connection.send(Run((work("a", "three", attempt=1),)))
        assert (await ear.finish("a", attempt=1)).reason == "stop"
        assert ear.words("a", attempt=1) == ["three"]

    # --- engines that go wrong

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            ("raise", "ValueError: it went wrong"),
            ("raise at once", "ValueError: the first thing went wrong"),
            ("no finish", "the engine ended this request without a finish"),
            ("system exit", "SystemExit: 5"),
            ("unsendable", "cannot be sent: TypeError"),
        ],
    )
    async def test_a_fault_ends_its_request_and_no_other(self, launcher, ear, fault, error):
        if fault == "unsendable" and self.carries_objects:
            pytest.skip("passes objects as they are")
        connection = await self.ready(launcher, ear)
        connection.send(Run((work("a", "one", "two", fault=fault), work("b", "one", "two", step_s=0.05))))
        finish = await ear.finish("a")
        assert finish.reason == "error"
        assert error in finish.error
        assert (await ear.finish("b")).reason == "stop"
        connection.send(Run((work("c", "one"),)))
        assert (await ear.finish("c")).reason == "stop"

    async def test_a_fault_in_a_batch_ends_all_of_it(self, launcher, ear):
        connection = await self.ready(launcher, ear, "StaticEcho")
        connection.send(Run((work("a", "one", "two", fault="raise"), work("b", "one", "two"), work("c"))))
        for request_id in "ab":
            assert (await ear.finish(request_id)).error == "ValueError: the batch went wrong"
        assert (await ear.finish("c")).reason == "stop"
        connection.send(Run((work("d", "one", fault="no finish"), work("e", "one"))))
        assert (await ear.finish("d")).reason == "error"
        assert (await ear.finish("e")).reason == "stop"

    async def test_what_comes_after_a_finish_is_dropped(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        connection.send(Run((work("a", "one", fault="goes on"),)))
        await ear.finish("a")
        connection.send(Run((work("b", "one", step_s=0.05),)))
        await ear.finish("b")
        await ear.finish("a")  # still exactly one
        assert ear.words("a") == ["one"]

    async def test_work_before_ready_is_rejected(self, launcher, ear):
        connection = await launcher.launch("echo-1", spec(start_s=0.2), ear)
        connection.send(Run((work("a", "one"),)))
        finish = await ear.finish("a")
        assert (finish.reason, finish.error) == ("rejected", "the engine is not ready")
        await ear.first(Ready)

    # --- credits and growing prompts

    async def test_credits_gate_the_engine(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        connection.send(Run((work("a", *"abcd", credits=2), work("free", *"abcd", step_s=0.02))))
        await ear.finish("free")
        assert ear.words("a") == ["a", "b"]
        connection.send(Credit("a", 1))
        await ear.until(lambda: len(ear.words("a")) == 3)
        connection.send(Credit("a", 10))
        assert (await ear.finish("a")).reason == "stop"
        assert ear.words("a") == list("abcd")

    async def test_abort_without_credit(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        connection.send(Run((work("a", *"abcd", credits=0), work("b", *"abcd", credits=1))))
        await ear.until(lambda: ear.words("b"))
        connection.send(Abort(("a", "b")))
        assert (await ear.finish("a")).reason == "cancelled"
        assert (await ear.finish("b")).reason == "cancelled"

    async def test_feeds_arrive_in_order(self, launcher, ear):
        connection = await self.ready(launcher, ear, "Growing")
        connection.send(Run((work("a"),)))
        for letter in "abcde":
            connection.send(Feed("a", letter, letter == "e"))
        assert (await ear.finish("a")).reason == "stop"
        assert ear.words("a") == list("abcde")
        connection.send(Feed("a", "late"))
        connection.send(Run((work("b"),)))
        connection.send(Abort(("b",)))
        await ear.finish("b")

    async def test_feed_to_an_engine_that_takes_none(self, launcher, ear):
        connection = await self.ready(launcher, ear)
        connection.send(Run((work("a", *"abcd", step_s=0.05),)))
        connection.send(Feed("a", "more"))
        finish = await ear.finish("a")
        assert finish.reason == "rejected"
        assert "still growing" in finish.error
