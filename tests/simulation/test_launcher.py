"""Simulated replicas: the launchers' conformance, and what is their own."""

import asyncio

import pytest

from foreserve.core import Chunk, EngineLoad, EngineSpec, Work
from foreserve.engines.generation import Count, Generate, Sized, Tokens
from foreserve.engines.profile import linear
from foreserve.engines.simulated import SimulatedEngine
from foreserve.fleet.inline import InlineLauncher
from foreserve.messages import Abort, Chunks, Credit, Drain, Drained, Exit, Feed, Heartbeat, Ready, Run, StartFailed
from foreserve.simulation import clock
from foreserve.simulation.launcher import SimulatedLauncher
from foreserve.simulation.oracle import Oracle
from foreserve.simulation.twin import ENGINE
from tests.fleet.conformance import Conformance, Ear

CLOSE = pytest.approx


class TestOtherEngines(Conformance):
    """Scripted engines and functions run beside simulated ones."""

    carries_objects = True

    @pytest.fixture
    async def launcher(self):
        launcher = SimulatedLauncher()
        yield launcher
        await launcher.close()


class TimedEar(Ear):
    """Knows when it heard what."""

    def __init__(self):
        super().__init__()
        self.at = []
        self.gone_at = None

    def heard(self, message):
        self.at.append((asyncio.get_running_loop().time(), message))
        super().heard(message)

    def exited(self, reason):
        self.gone_at = asyncio.get_running_loop().time()
        super().exited(reason)

    def of(self, kind):
        return [(at, message) for at, message in self.at if isinstance(message, kind)]

    def answer(self, id, attempt=0):
        """When each of its chunks came, with how many tokens."""
        return [
            (at, _tokens(chunk))
            for at, message in self.of(Chunks)
            for chunk in message.chunks
            if (chunk.id, chunk.attempt) == (id, attempt)
        ]


def _tokens(chunk: Chunk) -> int:
    if isinstance(chunk.data, Count):
        return chunk.data.tokens
    return len(chunk.data.ids) if isinstance(chunk.data, Tokens) else 0


# Prefill 0.1 s for 10 tokens, steps of 0.1 s and 0.05 s more for each further sequence.
PLAIN = {"prefill_s_per_token": 0.01, "decode_s": 0.1, "decode_s_per_seq": 0.05}


def simulated(liveness_s=60.0, start_limit_s=300.0, **options):
    return EngineSpec(factory=ENGINE, options={**PLAIN, **options}, liveness_s=liveness_s, start_limit_s=start_limit_s)


def work(id, output=5, prompt=10, **terms):
    payload = Generate(prompt=[1] * prompt, max_tokens=output, ignore_eos=True)
    return Work(id=id, payload=payload, cost={"slots": 1.0}, arrival=0.0, **terms)


def scene(play, spec=None, hook=None, **options):
    """`play(connection, ear)` on a virtual clock with one replica. Returns what it heard."""
    ear = TimedEar()

    async def main():
        launcher = SimulatedLauncher(**options)
        if hook is not None:
            launcher.launched.append(hook)
        connection = await launcher.launch("sim/0.1", spec or simulated(), ear)
        await play(connection, ear)
        await launcher.close()

    clock.run(main())
    return ear


async def test_ready_tells_what_the_engine_is():
    launcher, ear = SimulatedLauncher(), Ear()
    await launcher.launch("sim", simulated(slots=3), ear)
    assert (await ear.first(Ready)).info.capacity == {"slots": 3.0, "kv_tokens": 65_536.0}
    await launcher.close()
    assert ear.exits == ["killed"]


def test_an_answer_takes_its_time_and_comes_in_few_messages():
    async def play(connection, ear):
        await ear.first(Ready)
        connection.send(Run((work("a"), work("b"))))
        await ear.finish("b")

    ear = scene(play)
    # Prefills one after the other, then four steps of 0.15 s for both.
    assert ear.answer("a") == [CLOSE((0.1, 1)), CLOSE((0.8, 4))]
    assert ear.answer("b") == [CLOSE((0.2, 1)), CLOSE((0.8, 4))]
    assert len(ear.of(Chunks)) == 3


def test_sizes_are_answered_by_counts_of_true_lengths():
    oracle = Oracle()
    oracle.tell("a", 7)
    oracle.tell("long", 1000)
    oracle.tell("on", 7)

    async def play(connection, ear):
        await ear.first(Ready)
        asked = {
            "a": Sized(prompt_tokens=10, max_tokens=100),
            "long": Sized(prompt_tokens=10, max_tokens=20),
            "on": Sized(prompt_tokens=15, max_tokens=95, continued=5),
            "big": Sized(prompt_tokens=64, max_tokens=1),
        }
        connection.send(Run(tuple(Work(id=id, payload=payload, cost={}, arrival=0.0) for id, payload in asked.items())))
        ends = {id: await ear.finish(id) for id in asked}
        assert {id: end.reason for id, end in ends.items()} == {
            "a": "stop", "long": "length", "on": "stop", "big": "rejected",
        }  # fmt: skip
        assert ends["a"].usage == {"prompt_tokens": 10.0, "output_tokens": 7.0}
        assert "context of 64" in ends["big"].error

    ear = scene(play, simulated(lengths=oracle, context_tokens=64))
    assert {id: sum(tokens for _, tokens in ear.answer(id)) for id in ("a", "long", "on")} == {
        "a": 7, "long": 20, "on": 2,
    }  # fmt: skip


@pytest.mark.parametrize("batching", ["continuous", "static"])
def test_it_says_the_same_at_the_same_times_as_an_engine_host(batching):
    """A host with the engine's iterators, and timers without them."""

    def said(launcher):
        ear = TimedEar()

        async def main():
            spec = simulated(batching=batching, output_tokens=(2, 30), kv_tokens=300, slots=5, emit_every=7)
            connection = await launcher.launch("sim", spec, ear)
            await ear.first(Ready)
            for number in range(40):
                payloads = [Generate(prompt=[1] * (3 + number * i % 17), max_tokens=25) for i in range(3)]
                works = [
                    Work(id=f"{number}.{i}", payload=payload, cost={}, arrival=0.0)
                    for i, payload in enumerate(payloads)
                ]
                connection.send(Run(tuple(works)))
                await asyncio.sleep(0.37 * (number % 4) + 1.0)
                if number % 5 == 0:
                    connection.send(Abort((f"{number}.1",)))
            await asyncio.sleep(1000.0)
            connection.send(Exit())
            await ear.gone()

        clock.run(main())
        return [
            (round(at, 6), chunk.id, chunk.index, _tokens(chunk), chunk.finish and chunk.finish.reason)
            for at, message in ear.of(Chunks)
            for chunk in message.chunks
        ]

    simulated_ones = said(SimulatedLauncher())
    assert len({id for _, id, _, _, reason in simulated_ones if reason}) == 120
    assert simulated_ones == said(InlineLauncher())
    assert simulated_ones == said(SimulatedLauncher())


def test_work_of_another_kind_takes_its_seconds():
    async def play(connection, ear):
        await ear.first(Ready)
        works = [Work(id=id, payload={"seconds": s}, cost={}, arrival=0.0) for id, s in (("a", 2.0), ("b", 5.0))]
        connection.send(Run(tuple(works)))
        await asyncio.sleep(1.0)
        connection.slow(3.0)
        assert (await ear.finish("a")).usage == {"seconds": 2.0}
        connection.send(Abort(("b",)))
        assert (await ear.finish("b")).reason == "cancelled"

    ear = scene(play)
    assert [at for at, _ in ear.answer("a")] == [CLOSE(4.0)]


def test_abort_gives_what_was_made_and_ends():
    async def play(connection, ear):
        await ear.first(Ready)
        connection.send(Run((work("a", output=50), work("b", output=10))))
        await asyncio.sleep(0.9)
        connection.send(Abort(("a", "nobody"), (0, 0)))
        assert (await ear.finish("a")).usage["output_tokens"] == 5.0
        connection.send(Abort(("b",), (1,)))  # of another attempt
        await ear.finish("b")

    ear = scene(play)
    assert ear.answer("a") == [CLOSE((0.1, 1)), CLOSE((0.9, 4))]  # steps end at 0.35, 0.5, 0.65, 0.8
    assert sum(tokens for _, tokens in ear.answer("b")) == 10


def test_what_it_cannot_take_is_refused():
    async def play(connection, ear):
        connection.send(Run((work("early"),)))
        assert (await ear.finish("early")).error == "the engine is not ready"
        await ear.first(Ready)
        connection.send(Run((work("a", output=50),)))
        connection.send(Run((work("a", output=50, attempt=1),)))
        assert "attempt 0 of this request" in (await ear.finish("a", attempt=1)).error
        connection.send(Feed("a", [1]))
        assert "still growing" in (await ear.finish("a")).error
        connection.send(Drain())
        await ear.first(Drained)
        connection.send(Run((work("late"),)))
        assert "draining" in (await ear.finish("late")).error

    scene(play)


def test_drain_finishes_what_runs():
    async def play(connection, ear):
        await ear.first(Ready)
        connection.send(Run((work("a"),)))
        connection.send(Drain())
        await ear.first(Drained)
        assert (await ear.finish("a")).reason == "length"
        await connection.stop(1.0)
        assert ear.exits == ["stopped"]

    scene(play)


def test_credits_hold_chunks_back_as_one():
    async def play(connection, ear):
        await ear.first(Ready)
        connection.send(Run((work("a", output=9, credits=1), work("b", output=9, credits=0))))
        await asyncio.sleep(60.0)
        assert ear.answer("a") == [CLOSE((0.1, 1))]
        connection.send(Credit("a", 3))
        assert (await ear.finish("a")).reason == "length"
        connection.send(Abort(("b",)))
        assert (await ear.finish("b")).reason == "cancelled"

    ear = scene(play, simulated(emit_every=2))
    assert ear.answer("a")[1:] == [CLOSE((60.0, 8))]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slot": 3}, "valid options: slots, kv_tokens"),
        ({"slots": 0}, "must be at least 1"),
        ({"profile": "/nowhere/profile.yaml"}, "No such file"),
    ],
)
def test_a_failed_start_is_told_in_words(options, words):
    async def play(connection, ear):
        assert words in (await ear.first(StartFailed)).reason
        assert words in await ear.gone()

    spec = EngineSpec(factory=ENGINE, options=options)
    assert [type(message) for _, message in scene(play, spec).at] == [StartFailed]


# --- its start


def test_a_start_takes_the_profiles_time_or_the_launchers_and_what_is_added():
    async def play(connection, ear):
        await ear.first(Ready)

    assert scene(play, simulated(start_s=12.0)).at[0][0] == 12.0
    assert scene(play, simulated(start_s=12.0), start_s=3.0).at[0][0] == 3.0
    assert scene(play, simulated(start_s=12.0), hook=lambda connection: connection.delay(5.0)).at[0][0] == 17.0


def test_a_start_that_takes_too_long_is_given_up():
    async def play(connection, ear):
        assert await ear.gone() == "not ready within 10 s"

    assert scene(play, simulated(start_s=60.0, start_limit_s=10.0)).gone_at == CLOSE(10.0)


# --- heartbeats


def test_heartbeats_tell_the_load_every_second_while_there_is_any_and_are_rare_when_idle():
    async def play(connection, ear):
        await ear.first(Ready)
        await asyncio.sleep(1000.5)
        assert 30 < len(ear.of(Heartbeat)) < 40
        connection.send(Run((work("a", output=101), work("b", output=101))))
        await asyncio.sleep(10.0)
        beats = ear.of(Heartbeat)[-10:]
        assert [at for at, _ in beats] == [CLOSE(1001.0 + i) for i in range(10)]
        for at, beat in beats:
            # 20 prompt tokens by 1000.7 and then two more a step.
            steps = int((at - 1000.7) / 0.15 + 1e-6)
            assert beat.load == EngineLoad(
                running=2, waiting=0, kv_fraction=CLOSE((22 + 2 * steps) / 65_536), last_step_s=CLOSE(0.15)
            )
        await ear.finish("b")
        await asyncio.sleep(2.0)
        assert ear.of(Heartbeat)[-1][1].load == EngineLoad(running=0, waiting=0, kv_fraction=0.0)
        await asyncio.sleep(100_000.0)
        assert not ear.exits

    scene(play)


def test_a_week_of_idle_replicas_is_short():
    messages = 0

    async def main():
        nonlocal messages
        launcher, ears = SimulatedLauncher(), [TimedEar() for _ in range(4)]
        for ear in ears:
            await launcher.launch("sim", simulated(), ear)
        await asyncio.sleep(7 * 86_400.0)
        assert not any(ear.exits for ear in ears)
        messages = sum(len(ear.at) for ear in ears)
        await launcher.close()

    clock.run(main())
    assert messages < 4 * 7 * 86_400 / 25


# --- what goes wrong on purpose


def test_a_killed_replica_gives_no_finish_but_what_it_had_streamed():
    async def play(connection, ear):
        await ear.first(Ready)
        connection.send(Run((work("a", output=50),)))
        await asyncio.sleep(0.55)
        connection.kill()
        connection.kill()
        assert await ear.gone() == "killed"
        await asyncio.sleep(100.0)
        assert ear.exits == ["killed"]

    assert scene(play).answer("a") == [CLOSE((0.1, 1)), CLOSE((0.55, 4))]


def test_a_slow_replica_takes_longer_from_its_next_step_on():
    async def play(connection, ear):
        await ear.first(Ready)
        connection.send(Run((work("a"),)))
        await asyncio.sleep(0.25)
        connection.slow(10.0)
        await asyncio.sleep(2.5)
        connection.slow(1.0)
        await ear.finish("a")

    # Steps end at 0.2 and 0.3; two of a second each follow, of which the second runs to its end when it is fast again.
    assert scene(play).answer("a")[-1] == CLOSE((2.3, 4))


def test_tampering_with_a_replica_that_is_gone_sets_no_timer():
    async def play(connection, ear):
        await ear.first(Ready)
        connection.send(Run((work("a", output=50),)))
        await asyncio.sleep(1.0)
        connection.slow(3.0)
        connection.kill()
        connection.slow(1.0)
        connection.mute(False)
        await connection.gone.wait()
        assert not asyncio.get_running_loop().timers()

    scene(play)


def test_a_mute_replica_that_is_heard_again_in_time_is_not_given_up_though_it_was_idle():
    async def play(connection, ear):
        await ear.first(Ready)
        await asyncio.sleep(20.0)
        connection.mute(True)
        await asyncio.sleep(40.0)
        connection.mute(False)
        await asyncio.sleep(200.0)
        assert not ear.exits

    scene(play)


def test_a_mute_replica_is_given_up_as_silent():
    async def play(connection, ear):
        await ear.first(Ready)
        connection.send(Run((work("a"),)))
        await asyncio.sleep(0.15)
        connection.mute(True)
        assert await ear.gone() == "silent for 8 s"

    ear = scene(play, simulated(liveness_s=8.0))
    assert 8.0 <= ear.gone_at <= 10.0
    assert ear.answer("a") == [CLOSE((0.1, 1))]


def test_what_a_replica_said_while_it_was_mute_arrives_late():
    async def play(connection, ear):
        await ear.first(Ready)
        connection.send(Run((work("a"),)))
        connection.mute(True)
        await asyncio.sleep(3.0)
        connection.mute(False)
        await ear.finish("a")
        await asyncio.sleep(100.0)
        assert not ear.exits

    assert scene(play).answer("a") == [CLOSE((3.0, 1)), CLOSE((3.0, 4))]


def test_a_frozen_replica_repeats_its_last_load():
    async def play(connection, ear):
        await ear.first(Ready)
        connection.send(Run((work("a", output=1000),)))
        await asyncio.sleep(1.5)
        connection.freeze(True)
        await asyncio.sleep(2.0)
        assert len({beat.load for _, beat in ear.of(Heartbeat)}) == 1
        connection.freeze(False)
        await asyncio.sleep(1.0)
        assert len({beat.load for _, beat in ear.of(Heartbeat)}) == 2

    scene(play)


def test_every_new_connection_is_shown_to_those_who_asked():
    async def main():
        launcher, seen = SimulatedLauncher(), []
        launcher.launched.append(lambda connection: seen.append(connection.name))
        for name in ("a/0.1", "a/1.1"):
            await launcher.launch(name, simulated(), Ear())
        await launcher.close()
        return seen

    assert clock.run(main()) == ["a/0.1", "a/1.1"]


def test_the_engine_itself_takes_a_profile():
    engine = SimulatedEngine(profile=linear(slots=9, kv_tokens=4096), slots=4)
    assert engine.core.info().capacity == {"slots": 4.0, "kv_tokens": 4096.0}
