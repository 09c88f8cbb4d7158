import asyncio

import pytest
from tests.fleet.conformance import ENGINES, Conformance, Ear, spec, work

from foreserve.core import EngineSpec
from foreserve.fleet.inline import InlineLauncher
from foreserve.messages import Heartbeat, Ready, Run, StartFailed


class TestInline(Conformance):
    @pytest.fixture
    async def launcher(self):
        launcher = InlineLauncher()
        yield launcher
        await launcher.close()


class TestInlineWithoutCopies(Conformance):
    @pytest.fixture
    async def launcher(self):
        launcher = InlineLauncher(copy=False)
        launcher.passes_objects = True
        yield launcher
        await launcher.close()


class VirtualLoop(asyncio.BaseEventLoop):
    """Time jumps to the next timer; there is nothing else: no selector, no descriptors, no threads."""

    virtual = True
    epoch = 0.0

    def __init__(self):
        super().__init__()
        self._now = 0.0
        self._selector = self

    def time(self):
        return self._now

    def select(self, timeout):
        if timeout:
            self._now += timeout
        return []

    def _process_events(self, event_list):
        pass

    def _write_to_self(self):
        pass

    def run_in_executor(self, *_):
        raise AssertionError("no threads here")

    def add_reader(self, *_):
        raise AssertionError("no descriptors here")


def test_hours_on_a_virtual_clock_take_no_time():
    async def hours():
        launcher, ear = InlineLauncher(heartbeat_s=60.0), Ear()
        connection = await launcher.launch("echo-1", spec(liveness_s=600.0), ear)
        while not ear.messages:
            await asyncio.sleep(0.001)
        connection.send(Run((work("a", *"abc", step_s=3600.0),)))
        while not any(chunk.finish for chunk in ear.chunks("a")):
            await asyncio.sleep(1.0)
        assert ear.words("a") == list("abc")
        assert asyncio.get_running_loop().time() >= 3 * 3600
        assert 170 <= sum(isinstance(message, Heartbeat) for message in ear.messages) <= 181
        await launcher.close()
        assert ear.exits == ["killed"]

    loop = VirtualLoop()
    try:
        loop.run_until_complete(hours())
    finally:
        loop.close()


@pytest.mark.parametrize("own", [{"python": "/usr/bin/python3"}, {"env": {"A": "b"}}])
async def test_what_needs_a_process_is_refused(own):
    launcher, ear = InlineLauncher(), Ear()
    await launcher.launch("echo-1", EngineSpec(factory=f"{ENGINES}:Echo", **own), ear)
    assert f"{next(iter(own))} cannot be set" in (await ear.first(StartFailed)).reason
    await ear.gone()
    await launcher.close()


async def test_an_engine_that_ignores_its_cancel_is_cut_off(monkeypatch):
    monkeypatch.setattr("foreserve.runtime.host.ABORT_LIMIT_S", 0.1)
    from foreserve.messages import Abort

    launcher, ear = InlineLauncher(), Ear()
    connection = await launcher.launch("echo-1", spec(), ear)
    await ear.first(Ready)
    connection.send(Run((work("a", *"abcdefgh", step_s=60.0, fault="deaf"),)))
    await asyncio.sleep(0.01)
    connection.send(Abort(("a",)))
    assert (await ear.finish("a")).reason == "cancelled"
    await launcher.close()
