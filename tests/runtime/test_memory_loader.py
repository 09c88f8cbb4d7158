"""A load by itself; what a whole owner makes of it is in `test_memory_owner.py`."""

import asyncio
import os
import sys
from contextlib import suppress

import pytest

from foreserve.core import WeightsRef
from foreserve.runtime import memory_loader
from foreserve.runtime.memory_loader import Loader
from foreserve.runtime.safetensors import arranged


@pytest.mark.skipif(sys.platform != "linux", reason="open descriptors are listed on Linux")
async def test_a_load_that_is_stopped_at_its_very_beginning_leaves_nothing_open(tmp_path, monkeypatch):
    path, opened = tmp_path / "w", memory_loader.open_file
    path.write_bytes(arranged({"w": ("U8", (0,))}, "made")[0])
    loader, loop = Loader(readers=1, chunk_bytes=1000), asyncio.get_running_loop()

    def stopped(source):
        fd = opened(source)
        loop.call_soon_threadsafe(load.cancel)
        return fd

    async def no_bound(size):
        pass

    monkeypatch.setattr(memory_loader, "open_file", stopped)
    load = loop.create_task(loader.load(WeightsRef(name="w", source=str(path)), sys.executable, no_bound))
    with suppress(asyncio.CancelledError):
        await load
    open_now = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)}
    loader.close()
    assert str(path) not in open_now


def _is_open(fd):
    return os.path.islink(f"/proc/self/fd/{fd}")
