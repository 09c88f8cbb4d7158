"""Several copies at a time, over a real owner in this process's own loop and clients in threads of their own."""

import asyncio
import sys
import threading

import pytest

from foreserve.core import WeightsRef
from foreserve.errors import EngineStartError
from foreserve.runtime import waking
from foreserve.runtime.leases import Pending
from foreserve.runtime.memory_client import Client
from tests.runtime.test_memory_owner import image, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are handed out on Linux")

SIZE = 100_000
ROOM = 220_000  # for two images with their heads


class Engine:
    """Has two weights of its own on the device."""

    def __init__(self, folder, name, fill):
        self.client = Client(str(folder / "socket"), lambda pendings: None)
        self.pendings = []
        for n in range(2):
            path = folder / f"{name}{n}"
            path.write_bytes(image(fill + n, SIZE))
            self.pendings.append(Pending(WeightsRef(name=path.name, source=str(path), device="host-copy")))
        self.placed = [pending.placed for pending in self.pendings]

    async def start(self):
        self.client.want(self.pendings)
        for placed in self.placed:
            assert await asyncio.to_thread(placed.wait, 10.0) is not None

    async def rest(self):
        assert all([await asyncio.to_thread(placed.rest) for placed in self.placed])

    async def wake(self, **how):
        return await asyncio.to_thread(waking.wake, self.placed, asyncio.get_running_loop().time, **how)


async def two(folder):
    """Engines that both rest: the device has room for one of them."""
    engines = [Engine(folder, "a", 1), Engine(folder, "b", 3)]
    for engine in engines:
        await engine.start()
        await engine.rest()
    return engines


async def test_two_engines_that_have_one_of_two_each_do_not_wait_for_each_other(tmp_path):
    async with serving(tmp_path, device_capacity=ROOM, device_idle_s=0.0) as client:
        engines = await two(tmp_path)
        # Both have their first, as when two wake at once.
        assert await asyncio.to_thread(engines[0].placed[0].wake, 10.0) is not None
        assert await asyncio.to_thread(engines[1].placed[0].wake, 10.0) is not None
        both = threading.Barrier(2)

        async def whole(engine):
            first = engine.placed[0]
            real = first.wake
            once = []

            def has(timeout_s=None):
                if not once:
                    once.append(both.wait(10))
                    return True
                return real(timeout_s)

            first.wake = has
            await engine.wake(limit_s=30.0, patience_s=0.1)
            assert all(placed.rests for placed in engine.placed)
            await engine.rest()

        await asyncio.gather(*(whole(engine) for engine in engines))
        assert (await client.told()).device_bytes <= ROOM


async def test_who_does_not_get_all_of_them_in_time_fails_in_words_and_holds_nothing(tmp_path):
    async with serving(tmp_path, device_capacity=ROOM) as client:
        first, second = await two(tmp_path)
        await first.wake()
        with pytest.raises(EngineStartError, match=r"host-copy could not be had again within 0\.3 s: .*device_gb"):
            await second.wake(limit_s=0.3, patience_s=0.05)
        held = [entry for entry in (await client.told()).entries if entry.device and entry.references]
        assert {entry.source[-2:] for entry in held} == {"a0", "a1"}
        await first.rest()
        await second.wake(limit_s=10.0)
