from __future__ import annotations

import asyncio
from typing import Any

import pytest

from foreserve.core import Chunk, EngineInfo, EngineSpec, Finish, OutcomeKind, Work
from foreserve.dispatch.admission import Bounded
from foreserve.dispatch.batching import FirstCome
from foreserve.dispatch.dispatcher import Dispatcher
from foreserve.dispatch.ledger import Ledger
from foreserve.dispatch.placement import LeastRequests
from foreserve.dispatch.stream import Stream
from foreserve.errors import EngineStartError
from foreserve.fleet.replica import State
from foreserve.fleet.replicas import SOON_S, Replicas
from foreserve.fleet.seats import MOST_BACKOFF_S, PROVEN_S, SAY_AGAIN_S, backoff
from foreserve.messages import Abort, Chunks, Drain, Drained, Ready, Run, StartFailed, ToWorker
from foreserve.ports import Listener
from foreserve.simulation.clock import run
from tests.dispatch.harness import PlainDecoder

INFO = EngineInfo(batching="continuous", capacity={"slots": 2})


class FakeConnection:
    """A replica that takes `payload` seconds for each work; `script` says how its start goes."""

    def __init__(self, listener: Listener, start_s: float, fails: str | None) -> None:
        self.pid = None
        self.gone = False
        self._listener = listener
        self._running: dict[str, Work] = {}
        self._draining = False
        loop = asyncio.get_running_loop()
        loop.call_later(start_s, self._begin, fails)

    def _begin(self, fails: str | None) -> None:
        if self.gone:
            return
        if fails is not None:
            self._listener.heard(StartFailed(reason=fails))
            self.kill()
        else:
            self._listener.heard(Ready(info=INFO, pid=1))

    def send(self, message: ToWorker) -> None:
        match message:
            case Run(works=works):
                for work in works:
                    self._running[work.id] = work
                    asyncio.get_running_loop().call_later(work.payload, self._finish, work, "stop")
            case Abort(ids=ids):
                for request_id in ids:
                    work = self._running[request_id]
                    asyncio.get_running_loop().call_soon(self._finish, work, "cancelled")
            case Drain():
                self._draining = True
                if not self._running:
                    self._listener.heard(Drained())

    def _finish(self, work: Work, reason: Any) -> None:
        if not self.gone and self._running.pop(work.id, None):
            done = Chunk(id=work.id, index=0, attempt=work.attempt, finish=Finish(reason=reason))
            self._listener.heard(Chunks(chunks=(done,)))
            if self._draining and not self._running:
                self._listener.heard(Drained())

    async def stop(self, grace_s: float) -> None:
        self.kill("stopped")

    def kill(self, reason: str = "killed") -> None:
        if not self.gone:
            self.gone = True
            self._listener.exited(reason)


class FakeLauncher:
    def __init__(
        self, start_s: float = 1.0, fails: list[str | None] | None = None, starts: list[float] | None = None
    ) -> None:
        self.connections: list[FakeConnection] = []
        self.launched_at: list[float] = []
        self.names: list[str] = []
        self._start_s = start_s
        self._fails = fails or []
        self._starts = starts or []

    async def launch(self, name: str, spec: EngineSpec, listener: Listener) -> FakeConnection:
        fails = self._fails.pop(0) if self._fails else None
        self.names.append(name)
        self.launched_at.append(asyncio.get_running_loop().time())
        start_s = self._starts.pop(0) if self._starts else self._start_s
        connection = FakeConnection(listener, start_s, fails)
        self.connections.append(connection)
        return connection

    async def close(self) -> None: ...


class House:
    def __init__(
        self,
        launcher: FakeLauncher,
        count: int = 1,
        max_wait_s: float = 1000,
        most_backoff_s: float | None = None,
        **words: Any,
    ) -> None:
        self.ledger = Ledger()
        self.dispatcher = Dispatcher(
            "chat",
            FirstCome(),
            LeastRequests(),
            Bounded(max_waiting=100, max_wait_s=max_wait_s),
            self.ledger,
            max_wait_s=max_wait_s,
            settled=lambda outcome: None,
        )
        self.infos: list[EngineInfo] = []
        self.launcher = launcher
        specs = [EngineSpec(factory="x:y", most_backoff_s=most_backoff_s)] * count
        self.replicas = Replicas("chat", lambda: specs, launcher, self.dispatcher, self.infos.append, **words)

    def submit(self, request_id: str, seconds: float, deadline_s: float | None = None) -> Stream:
        now = asyncio.get_running_loop().time()
        stream = Stream(request_id, PlainDecoder, bound=10, stall_s=30, on_leave=self.dispatcher.leave)
        deadline = None if deadline_s is None else now + deadline_s
        work = Work(id=request_id, payload=seconds, cost={"slots": 1}, arrival=now, deadline=deadline)
        self.dispatcher.submit(work, stream)
        return stream

    def phases(self) -> list[tuple[str, str]]:
        now = asyncio.get_running_loop().time()
        return [(view.name, view.phase) for view in self.replicas.views(now)]


def test_backoff_is_none_after_a_first_loss_then_grows_to_its_bound():
    assert [backoff(n) for n in range(1, 5)] == [0.0, 0.5, 1.0, 2.0]
    assert backoff(1000) == MOST_BACKOFF_S


def test_replicas_start_side_by_side_and_have_names():
    async def main() -> None:
        launcher = FakeLauncher(start_s=3.0)
        house = House(launcher, count=3)
        await house.replicas.start()
        assert asyncio.get_running_loop().time() == 3.0
        assert launcher.names == ["chat/0.1", "chat/1.1", "chat/2.1"]
        assert house.infos == [INFO] * 3
        await house.replicas.stop(1.0)
        assert not house.replicas.ready

    run(main())


def test_who_finds_none_ready_is_told_when_one_should_be():
    async def main() -> None:
        house = House(FakeLauncher(start_s=20.0))
        loop, replicas = asyncio.get_running_loop(), house.replicas
        assert replicas.retry_s(loop.time()) == 1.0  # none starts
        starting = asyncio.create_task(replicas.start())
        await asyncio.sleep(8)
        assert replicas.retry_s(loop.time()) == 8.0  # as long again as it has taken
        await starting
        house.launcher.connections[0].kill()
        await asyncio.sleep(5)
        assert replicas.retry_s(loop.time()) == 15.0  # what is left of a start as it was measured
        await asyncio.sleep(14.5)
        assert replicas.retry_s(loop.time()) == 1.0
        await replicas.stop(1.0)

    run(main())


def test_a_first_loss_is_replaced_at_once_and_its_work_goes_on():
    async def main() -> None:
        launcher = FakeLauncher()
        house = House(launcher)
        await house.replicas.start()
        stream = house.submit("a", 5.0)
        await asyncio.sleep(2)
        launcher.connections[0].kill()
        outcome = await stream.settled()
        assert (outcome.kind, outcome.replica, outcome.started) == (OutcomeKind.DONE, "chat/0.2", 4.0)
        assert launcher.launched_at == [0.0, 3.0]
        await house.replicas.stop(0)
        house.ledger.check(idle=True)

    run(main())


def test_losses_in_a_row_back_off_and_refuse_meanwhile_until_one_has_proven_itself():
    async def main() -> None:
        launcher = FakeLauncher()
        house = House(launcher)
        await house.replicas.start()
        for loss in range(3):
            launcher.connections[-1].kill()
            await asyncio.sleep(0)
            if loss:
                refused = await house.submit(f"q{loss}", 1.0).settled()
                assert refused.code == "unavailable"
                assert "killed" in refused.reason
            await asyncio.sleep(5)
        assert launcher.launched_at == [0.0, 1.0, 6.5, 12.0]
        await asyncio.sleep(PROVEN_S)
        now = asyncio.get_running_loop().time()
        launcher.connections[-1].kill()
        await asyncio.sleep(0.001)
        assert launcher.launched_at[-1] == now
        await house.replicas.stop(0)

    run(main())


def test_a_place_that_cannot_be_filled_is_told_once_a_minute_and_a_new_reason_at_once(caplog):
    async def main() -> None:
        launcher = FakeLauncher(start_s=0.5, fails=[None, *["it is down"] * 60, *["it has no such model"] * 3])
        house = House(launcher, most_backoff_s=SOON_S)
        await house.replicas.start()
        launcher.connections[-1].kill("it is down")
        await asyncio.sleep(3 * SAY_AGAIN_S)
        await house.replicas.stop(0)

    run(main())
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    reasons = [message.partition("(")[2].partition(")")[0] for message in told]
    assert reasons == ["it is down", "it is down", "it has no such model"]  # of 64 losses in 93 s


def test_who_waits_for_one_that_was_up_and_is_cheap_to_start_is_served():
    async def main() -> None:
        launcher = FakeLauncher()
        house = House(launcher, most_backoff_s=SOON_S)
        await house.replicas.start()
        for loss in range(4):
            launcher.connections[-1].kill()
            served = await house.submit(f"q{loss}", 0.1).settled()
            assert served.kind is OutcomeKind.DONE
        launcher._fails = ["no such file"] * 9
        launcher.connections[-1].kill()
        refused = await house.submit("last", 0.1).settled()
        assert (refused.code, "no such file" in refused.reason) == ("unavailable", True)
        await house.replicas.stop(0)

    run(main())


def test_nothing_can_be_started_says_why():
    async def main() -> None:
        house = House(FakeLauncher(fails=["no such file: m.gguf"] * 9))
        with pytest.raises(EngineStartError, match=r"'chat'.*no such file: m\.gguf"):
            await house.replicas.start()

    run(main())


def test_one_of_two_may_fail_and_is_tried_again():
    async def main() -> None:
        launcher = FakeLauncher(fails=["port in use"])
        house = House(launcher, count=2)
        await house.replicas.start()
        await asyncio.sleep(5)
        assert len(house.replicas.ready) == 2
        await house.replicas.stop(0)

    run(main())


def test_leaving_drains_what_runs_but_not_for_ever():
    async def main() -> None:
        house = House(FakeLauncher())
        await house.replicas.start()
        short, long = house.submit("short", 2.0), house.submit("long", 500.0)
        await asyncio.sleep(0)
        waiting = house.submit("waiting", 1.0)
        await house.replicas.stop(drain_s=10.0)
        assert asyncio.get_running_loop().time() == 11.0
        assert (await short.settled()).kind is OutcomeKind.DONE
        assert waiting.outcome is None or waiting.outcome.kind is not OutcomeKind.DONE
        assert [replica.state for replica in house.replicas.all] == [State.GONE]
        house.dispatcher.give_up("stopped")
        assert (await long.settled()).kind is OutcomeKind.FAILED
        house.ledger.check(idle=True)

    run(main())


def test_the_first_ready_replica_serves_and_is_replaced_while_another_still_starts():
    async def main() -> None:
        launcher = FakeLauncher(starts=[1.0, 300.0, 2.0])
        house = House(launcher, count=2)
        await house.replicas.start()
        assert asyncio.get_running_loop().time() == 1.0
        launcher.connections[0].kill()
        await asyncio.sleep(2.5)
        assert [replica.name for replica in house.replicas.ready] == ["chat/0.2"]
        await asyncio.sleep(300)
        assert len(house.replicas.ready) == 2
        await house.replicas.stop(0)

    run(main())


def test_nothing_is_given_up_while_another_replica_starts():
    async def main() -> None:
        launcher = FakeLauncher(starts=[1.0, 1.0, 1.0, 10.0])
        house = House(launcher, count=2)
        await house.replicas.start()
        await asyncio.sleep(1)
        launcher.connections[0].kill()
        launcher.connections[1].kill()
        await asyncio.sleep(1.5)
        launcher.connections[2].kill()
        waits = house.submit("waits", 1.0)
        await asyncio.sleep(0)
        assert waits.outcome is None
        assert (await waits.settled()).kind is OutcomeKind.DONE
        await house.replicas.stop(0)

    run(main())
