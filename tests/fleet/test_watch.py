import asyncio
import time

from foreserve.core import EngineInfo, EngineLoad, EngineSpec
from foreserve.fleet.watch import Watch, heartbeat_s
from foreserve.messages import Heartbeat, Ready
from foreserve.simulation import clock

READY = Ready(EngineInfo(batching="continuous", capacity={"slots": 1}), 1)
BEAT = Heartbeat(EngineLoad())
SPEC = EngineSpec(factory="x:y", start_limit_s=100.0, liveness_s=8.0)


class Deaf:
    def __init__(self):
        self.exits = []

    def heard(self, message):
        raise ValueError("a listener's own fault")

    def exited(self, reason):
        self.exits.append(reason)


def _watch(spec=SPEC):
    given_up = []
    listener = Deaf()
    return Watch(spec, listener, given_up.append), listener, given_up


def test_silence_counts_from_ready_on():
    async def life():
        watch, _, given_up = _watch()
        await asyncio.sleep(90.0)
        watch.heard(READY)
        for _ in range(10):
            await asyncio.sleep(5.0)
            watch.heard(BEAT)
        assert given_up == []
        await asyncio.sleep(9.0)
        assert given_up == ["silent for 8 s"]

    clock.run(life())


def test_start_limit():
    async def life():
        _, _, given_up = _watch()
        await asyncio.sleep(101.0)
        assert given_up == ["not ready within 100 s"]
        Watch(SPEC, Deaf(), given_up.append, lambda: "it waits for room")
        await asyncio.sleep(101.0)
        assert given_up[1:] == ["not ready within 100 s: it waits for room"]

    clock.run(life())


def test_an_exit_is_told_once_and_ends_the_watching():
    async def life():
        watch, listener, given_up = _watch()
        watch.exited("first")
        watch.exited("second")
        watch.heard(BEAT)
        await asyncio.sleep(1000.0)
        assert (listener.exits, given_up) == (["first"], [])

    clock.run(life())


async def test_a_pause_of_ours_is_not_taken_for_their_silence():
    watch, _, given_up = _watch(EngineSpec(factory="x:y", liveness_s=0.4))
    watch.heard(READY)
    time.sleep(0.6)  # noqa: ASYNC251  # the gateway's loop is blocked: what came meanwhile is unread
    await asyncio.sleep(0.01)
    assert given_up == []
    watch.exited("end")


def test_heartbeats_come_several_times_within_the_limit():
    assert heartbeat_s(EngineSpec(factory="x:y", liveness_s=60.0)) == 1.0
    assert heartbeat_s(EngineSpec(factory="x:y", liveness_s=0.4)) == 0.1
