"""Replicas that come and go while requests run, on the virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from foreserve.core import EngineSpec, OutcomeKind
from foreserve.errors import EngineStartError
from foreserve.fleet.replica import State
from foreserve.simulation.clock import run
from tests.fleet.test_replicas import FakeLauncher, House


def test_as_many_as_the_least_are_started_and_more_when_they_are_wanted():
    async def main() -> None:
        house = House(FakeLauncher(start_s=3.0), count=4, least=1)
        await house.replicas.start()
        assert house.phases() == [("chat/0.1", "ready")]
        house.replicas.scale(3)
        house.replicas.scale(3)
        await asyncio.sleep(1)
        assert house.phases() == [("chat/0.1", "ready"), ("chat/1.1", "starting"), ("chat/2.1", "starting")]
        assert house.replicas.start_s == 3.0
        await asyncio.sleep(2.1)
        assert len(house.replicas.ready) == 3
        house.replicas.scale(9)
        assert house.replicas.wanted == 4, "there are no more places"
        await house.replicas.stop(0)

    run(main())


def test_the_emptiest_leaves_after_what_it_runs_and_is_given_nothing_new():
    async def main() -> None:
        house = House(FakeLauncher(), count=3)
        await house.replicas.start()
        first = [house.submit(f"a{number}", 10.0) for number in range(5)]  # 2, 2 and 1
        await asyncio.sleep(1)
        house.replicas.scale(2)
        assert house.phases() == [("chat/0.1", "ready"), ("chat/1.1", "ready"), ("chat/2.1", "isolated")]
        late = house.submit("late", 1.0)
        await asyncio.sleep(8)
        assert late.outcome is None, "its room is not used"
        await asyncio.sleep(2)
        assert [stream.outcome.kind for stream in first if stream.outcome] == [OutcomeKind.DONE] * 5
        assert [stream.outcome.attempt for stream in first if stream.outcome] == [0] * 5
        assert house.phases() == [("chat/0.1", "ready"), ("chat/1.1", "ready")]
        assert (await late.settled()).replica == "chat/0.1"
        await house.replicas.stop(0)
        house.ledger.check(idle=True)

    run(main())


def test_an_isolated_one_is_taken_back_before_another_is_started():
    async def main() -> None:
        launcher = FakeLauncher()
        house = House(launcher, count=2)
        await house.replicas.start()
        runs = [house.submit(f"a{number}", 10.0) for number in range(4)]
        await asyncio.sleep(1)
        house.replicas.scale(1)
        waits = house.submit("waits", 1.0)
        await asyncio.sleep(1)
        house.replicas.scale(2)
        assert house.phases() == [("chat/0.1", "ready"), ("chat/1.1", "ready")]
        for stream in (*runs, waits):
            assert (await stream.settled()).kind is OutcomeKind.DONE
        await asyncio.sleep(60)
        assert launcher.names == ["chat/0.1", "chat/1.1"]
        assert len(house.replicas.ready) == 2
        await house.replicas.stop(0)

    run(main())


def test_a_start_that_is_not_wanted_any_more_is_ended_and_never_serves():
    async def main() -> None:
        launcher = FakeLauncher(starts=[1.0, 50.0, 50.0])
        house = House(launcher, count=3, least=1)
        await house.replicas.start()
        house.replicas.scale(3)
        await asyncio.sleep(5)
        house.replicas.scale(1)
        await asyncio.sleep(0)
        assert [connection.gone for connection in launcher.connections] == [False, True, True]
        await asyncio.sleep(100)
        assert house.phases() == [("chat/0.1", "ready")]
        house.replicas.scale(2)
        await asyncio.sleep(2)
        assert house.phases() == [("chat/0.1", "ready"), ("chat/1.2", "ready")], "a name is never given twice"
        await house.replicas.stop(0)

    run(main())


def test_one_that_is_wanted_again_within_the_same_turn_comes_all_the_same():
    async def main() -> None:
        house = House(FakeLauncher(), count=2, least=1)
        await house.replicas.start()
        for wanted in (2, 1, 2, 1, 2):
            house.replicas.scale(wanted)
        await asyncio.sleep(5)
        assert len(house.replicas.ready) == 2
        await house.replicas.stop(0)

    run(main())


def test_what_takes_longer_than_the_drain_goes_on_where_there_is_room():
    async def main() -> None:
        house = House(FakeLauncher(), count=2, drain_s=30.0)
        await house.replicas.start()
        full = [house.submit(f"f{number}", 60.0) for number in range(4)]
        await asyncio.sleep(1)
        house.replicas.scale(1)
        await asyncio.sleep(45)
        assert house.phases()[1] == ("chat/1.1", "isolated"), "the other has no room, so they stay where they are"
        full[0].close()
        await asyncio.sleep(2)
        moved = [f for f in house.dispatcher.running.values() if f.why_again]
        assert [flight.why_again for flight in moved] == ["replica left"]
        for stream in full[1:]:
            assert (await stream.settled()).kind is OutcomeKind.DONE
        assert len(house.replicas.all) == 1
        await house.replicas.stop(0)
        house.ledger.check(idle=True)

    run(main())


def test_who_has_a_deadline_is_not_moved():
    async def main() -> None:
        house = House(FakeLauncher(), count=2, drain_s=5.0)
        await house.replicas.start()
        runs = [house.submit(f"f{number}", 60.0, deadline_s=100.0) for number in range(2)]
        await asyncio.sleep(1)
        house.replicas.scale(1)
        await asyncio.sleep(30)
        assert [flight.why_again for flight in house.dispatcher.running.values()] == ["", ""]
        for stream in runs:
            assert (await stream.settled()).kind is OutcomeKind.DONE
        await asyncio.sleep(2)
        assert len(house.replicas.all) == 1
        await house.replicas.stop(0)

    run(main())


def test_a_crash_while_isolated_has_no_successor_and_its_work_goes_on_elsewhere():
    async def main() -> None:
        launcher = FakeLauncher()
        house = House(launcher, count=2)
        await house.replicas.start()
        runs = [house.submit(f"a{number}", 10.0) for number in range(2)]
        await asyncio.sleep(1)
        house.replicas.scale(1)
        launcher.connections[1].kill()
        for stream in runs:
            assert (await stream.settled()).kind is OutcomeKind.DONE
        await asyncio.sleep(60)
        assert launcher.names == ["chat/0.1", "chat/1.1"]
        assert house.phases() == [("chat/0.1", "ready")]
        await house.replicas.stop(0)

    run(main())


def test_one_that_cannot_be_started_does_not_block_scaling_down():
    async def main() -> None:
        launcher = FakeLauncher(fails=[None, *["no memory"] * 9])
        house = House(launcher, count=2, least=1)
        await house.replicas.start()
        house.replicas.scale(2)
        await asyncio.sleep(10)
        tries = len(launcher.names)
        assert tries > 3
        assert house.phases() == [("chat/0.1", "ready"), (f"chat/1.{tries - 1}", "starting")]
        assert house.dispatcher.unavailable is None
        house.replicas.scale(1)
        await asyncio.sleep(100)
        assert len(launcher.names) == tries
        house.replicas.scale(2)
        await asyncio.sleep(0.5)
        assert len(launcher.names) == tries + 1
        await asyncio.sleep(0.8)
        house.replicas.scale(1)
        house.replicas.scale(2)
        await asyncio.sleep(0.5)
        assert len(launcher.names) == tries + 1, "its pause is not shortened by wanting it anew"
        await house.replicas.stop(0)

    run(main())


def test_the_only_one_stays_when_only_one_is_wanted_and_it_crashes():
    async def main() -> None:
        launcher = FakeLauncher()
        house = House(launcher, count=3, least=1)
        await house.replicas.start()
        house.replicas.scale(2)
        await asyncio.sleep(2)
        house.replicas.scale(1)
        launcher.connections[0].kill()
        await asyncio.sleep(2)
        assert house.phases() == [("chat/0.2", "ready")]
        await house.replicas.stop(0)

    run(main())


def test_the_first_place_stays_where_it_does_what_the_others_cannot():
    async def main() -> None:
        launcher = FakeLauncher()
        house = House(launcher, count=3, least=1, first_stays=True)
        await house.replicas.start()
        house.replicas.scale(3)
        await asyncio.sleep(2)
        stream = house.submit("a", 5.0)  # the first has it, so the others hold less
        house.replicas.scale(2)
        assert next(name for name, phase in house.phases() if phase == "ready") == "chat/0.1"
        launcher.connections[0].kill()
        house.replicas.scale(1)
        await asyncio.sleep(20)
        assert house.phases() == [("chat/0.2", "ready")]
        assert stream.outcome is not None
        await house.replicas.stop(0)

    run(main())


def test_stopping_while_one_starts_one_leaves_and_one_waits_to_be_started():
    async def main() -> None:
        launcher = FakeLauncher(starts=[1.0, 1.0, 60.0], fails=[None, None, None, "no", "no", "no"])
        house = House(launcher, count=4, least=2)
        await house.replicas.start()
        await asyncio.sleep(0)
        runs = [house.submit(f"a{number}", 5.0) for number in range(4)]
        house.replicas.scale(4)
        await asyncio.sleep(2.6)
        house.replicas.scale(1)
        house.replicas.scale(3)
        await house.replicas.stop(10.0)
        assert {replica.state for replica in house.replicas.all} <= {State.GONE}
        assert [(await stream.settled()).kind for stream in runs] == [OutcomeKind.DONE] * 4
        launched = len(launcher.names)
        await asyncio.sleep(100)
        assert len(launcher.names) == launched
        house.replicas.scale(4)
        assert len(launcher.names) == launched
        house.ledger.check(idle=True)

    run(main())


# --- from none and back


def test_a_service_that_may_have_none_starts_without_and_its_first_request_waits_for_one():
    async def main() -> None:
        launcher = FakeLauncher(start_s=100.0)
        house = House(launcher, count=2, least=0, max_wait_s=30)
        await house.replicas.start()
        assert asyncio.get_running_loop().time() == 0.0
        assert launcher.names == []
        assert house.dispatcher.unavailable is None
        streams = [house.submit(f"a{number}", 20.0) for number in range(4)]
        done = [await stream.settled() for stream in streams]
        assert launcher.names == ["chat/0.1"], "one request wants one, the others wait for the same"
        assert [outcome.kind for outcome in done] == [OutcomeKind.DONE] * 4
        assert [outcome.started for outcome in done] == [100.0, 100.0, 120.0, 120.0]
        late = [house.submit(f"b{number}", 20.0) for number in range(6)]
        assert [(await stream.settled()).kind for stream in late].count(OutcomeKind.SHED) == 2, "as ever once it is up"
        house.replicas.scale(0)
        await asyncio.sleep(1)
        assert house.phases() == []
        assert house.dispatcher.view().cold_s == 100.0
        again = house.submit("again", 5.0)
        assert (await again.settled()).replica == "chat/0.2"
        await house.replicas.stop(0)
        house.ledger.check(idle=True)

    run(main())


def test_a_start_that_fails_is_told_to_those_who_wait_and_the_service_is_there_again():
    async def main() -> None:
        launcher = FakeLauncher(fails=["no such file: m.gguf"] * 2)
        house = House(launcher, count=1, least=0)
        await house.replicas.start()
        outcome = await house.submit("a", 1.0).settled()
        assert (outcome.kind, outcome.code) == (OutcomeKind.FAILED, "unavailable")
        assert "no such file: m.gguf" in outcome.reason
        assert (await house.submit("b", 1.0).settled()).code == "unavailable"
        house.replicas.scale(0)
        assert (await house.submit("c", 1.0).settled()).kind is OutcomeKind.DONE
        await house.replicas.stop(0)

    run(main())


def test_a_start_that_hangs_is_waited_for_only_so_long():
    async def main() -> None:
        house = House(FakeLauncher(start_s=1e6), count=1, least=0, max_wait_s=5)
        house.replicas._specs = lambda: [EngineSpec(factory="x:y", start_limit_s=60.0)]
        await house.replicas.start()
        outcome = await house.submit("a", 1.0).settled()
        assert (outcome.code, outcome.ended) == ("unavailable", 60.0)
        assert "60 s" in outcome.reason
        await house.replicas.stop(0)

    run(main())


def test_a_deadline_within_a_start_is_refused_once_it_is_known_how_long_one_takes():
    async def main() -> None:
        house = House(FakeLauncher(start_s=20.0), count=1, least=0)
        await house.replicas.start()
        assert (await house.submit("a", 1.0, deadline_s=10.0).settled()).kind is OutcomeKind.EXPIRED
        await house.submit("b", 1.0).settled()
        house.replicas.scale(0)
        await asyncio.sleep(1)
        refused = await house.submit("c", 1.0, deadline_s=10.0).settled()
        assert refused.kind is OutcomeKind.SHED
        assert "20.0 s predicted wait" in refused.reason
        assert (await house.submit("d", 1.0, deadline_s=60.0).settled()).kind is OutcomeKind.DONE
        await house.replicas.stop(0)

    run(main())


def test_the_last_one_crashes_and_those_who_wait_go_on_waiting():
    async def main() -> None:
        launcher = FakeLauncher(starts=[1.0, 50.0])
        house = House(launcher, count=1, least=0, max_wait_s=10)
        await house.replicas.start()
        runs = [house.submit(f"a{number}", 5.0) for number in range(4)]
        await asyncio.sleep(3)
        launcher.connections[0].kill()
        outcomes = [await stream.settled() for stream in runs]
        assert [outcome.kind for outcome in outcomes] == [OutcomeKind.DONE] * 4
        assert max(outcome.started or 0.0 for outcome in outcomes) == 58.0
        await house.replicas.stop(0)

    run(main())


# --- servers join and leave


def test_servers_join_and_leave_by_name_or_address():
    async def main() -> None:
        launcher = FakeLauncher()
        house = House(launcher, count=1)
        await house.replicas.start()
        spec = EngineSpec(factory="x:y", options={"url": "http://gpu2:8000"})
        assert house.replicas.join(spec) == "chat/1.1"
        await asyncio.sleep(1.5)
        runs = [house.submit(f"a{number}", 10.0) for number in range(4)]
        await asyncio.sleep(1)
        with pytest.raises(LookupError, match=r"no replica 'http://gpu3:8000'.*http://gpu2:8000"):
            house.replicas.leave("http://gpu3:8000")
        assert house.replicas.leave("http://gpu2:8000") == "chat/1.1"
        house.replicas.scale(2)
        assert house.phases() == [("chat/0.1", "ready"), ("chat/1.1", "isolated")], "it is not taken back"
        await asyncio.sleep(10)
        assert [stream.outcome.kind for stream in runs if stream.outcome] == [OutcomeKind.DONE] * 4
        assert house.phases() == [("chat/0.1", "ready")]
        assert house.replicas.join(spec) == "chat/2.1"
        await asyncio.sleep(1.5)
        assert house.replicas.leave("chat/0.1") == "chat/0.1"
        await asyncio.sleep(1)
        assert house.phases() == [("chat/2.1", "ready")]
        house.replicas.leave("chat/2.1")
        await asyncio.sleep(1)
        assert house.phases() == []
        outcome = await house.submit("nobody", 1.0).settled()
        assert (outcome.code, "the last one left" in outcome.reason) == ("unavailable", True)
        house.replicas.join(spec)
        await asyncio.sleep(2)
        assert (await house.submit("somebody", 1.0).settled()).kind is OutcomeKind.DONE
        await house.replicas.stop(0)

    run(main())


def test_one_that_is_wanted_again_within_its_pause_counts_as_starting():
    async def main() -> None:
        house = House(FakeLauncher(fails=[None, *["no memory"] * 9]), count=2, least=1)
        await house.replicas.start()
        house.replicas.scale(2)
        await asyncio.sleep(20)
        house.replicas.scale(1)
        house.replicas.scale(2)
        assert [phase for _, phase in house.phases()] == ["ready", "starting"]
        await house.replicas.stop(0)

    run(main())


def test_nobody_joins_once_all_are_ended():
    async def main() -> None:
        launcher = FakeLauncher()
        house = House(launcher, count=1)
        await house.replicas.start()
        await house.replicas.stop(0)
        with pytest.raises(EngineStartError, match="'chat' is ending"):
            house.replicas.join(EngineSpec(factory="x:y", options={"url": "http://gpu2:8000"}))
        await asyncio.sleep(2)
        assert launcher.names == ["chat/0.1"]

    run(main())


def test_without_any_place_left_nobody_waits_for_a_start():
    async def main() -> None:
        house = House(FakeLauncher(), count=1, least=0)
        await house.replicas.start()
        stream = house.submit("a", 10.0)
        await asyncio.sleep(2)
        house.replicas.leave("chat/0.1")
        refused = await house.submit("late", 1.0).settled()
        assert (refused.code, "the last one left" in refused.reason) == ("unavailable", True)
        assert (await stream.settled()).kind is OutcomeKind.DONE
        await asyncio.sleep(1)
        refused = await house.submit("later", 1.0).settled()
        assert (refused.code, "the last one left" in refused.reason) == ("unavailable", True)
        await house.replicas.stop(0)
        house.ledger.check(idle=True)

    run(main())
