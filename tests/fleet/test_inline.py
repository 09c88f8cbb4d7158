import asyncio

import pytest

from foreserve.core import EngineSpec
from foreserve.fleet.inline import InlineLauncher
from foreserve.messages import Abort, Heartbeat, Ready, Run, StartFailed
from foreserve.simulation import clock
from tests.fleet.conformance import ENGINES, Conformance, Ear, spec, work


class TestInlineWithCopies(Conformance):
    @pytest.fixture
    async def launcher(self):
        launcher = InlineLauncher(copy=True)
        yield launcher
        await launcher.close()


class TestInline(Conformance):
    carries_objects = True

    @pytest.fixture
    async def launcher(self):
        launcher = InlineLauncher()
        yield launcher
        await launcher.close()


def test_hours_on_a_virtual_clock_take_no_time():
    async def hours():
        launcher, ear = InlineLauncher(heartbeat_s=60.0), Ear()
        connection = await launcher.launch("echo-1", spec(liveness_s=600.0), ear)
        await ear.first(Ready)
        connection.send(Run((work("a", *"abc", step_s=3600.0),)))
        assert (await ear.finish("a", limit_s=20_000.0)).reason == "stop"
        assert asyncio.get_running_loop().time() == pytest.approx(3 * 3600)
        assert 178 <= sum(isinstance(message, Heartbeat) for message in ear.messages) <= 180
        await launcher.close()
        assert ear.exits == ["killed"]

    clock.run(hours())


@pytest.mark.parametrize("own", [{"python": "/usr/bin/python3"}, {"env": {"A": "b"}}])
async def test_what_needs_a_process_is_refused(own):
    launcher, ear = InlineLauncher(), Ear()
    await launcher.launch("echo-1", EngineSpec(factory=f"{ENGINES}:Echo", **own), ear)
    assert f"{next(iter(own))} cannot be set" in (await ear.first(StartFailed)).reason
    await ear.gone()
    await launcher.close()


async def test_an_engine_that_ignores_its_cancel_is_cut_off(monkeypatch):
    monkeypatch.setattr("foreserve.runtime.requests.ABORT_LIMIT_S", 0.1)
    launcher, ear = InlineLauncher(), Ear()
    connection = await launcher.launch("echo-1", spec(), ear)
    await ear.first(Ready)
    connection.send(Run((work("a", *"abcdefgh", step_s=60.0, fault="deaf"),)))
    await asyncio.sleep(0.01)
    connection.send(Abort(("a",)))
    assert (await ear.finish("a")).reason == "cancelled"
    await launcher.close()
