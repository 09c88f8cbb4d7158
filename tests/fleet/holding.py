"""Processes that hold weights as workers do, for tests of the memory owner."""

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

from foreserve.runtime.safetensors import arranged

ROOT = Path(__file__).parents[2]
MIB = 2**20


def weights_file(path, mib=1, fill=1):
    size = mib * MIB - 128
    head, _ = arranged({"w": ("U8", (size,))}, "made")
    assert len(head) == 128
    path.write_bytes(head + bytes([fill]) * size)
    return path


class Holder:
    """See `holder.py`."""

    def __init__(self, process):
        self._process = process
        self.pid = process.pid

    @classmethod
    async def start(cls, memory, *wanted):
        env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", **(memory.env() if memory else {})}
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, str(Path(__file__).with_name("holder.py")), *wanted]
        return cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=env))

    async def say(self, word):
        self._process.stdin.write(f"{word}\n".encode())
        return json.loads(await asyncio.wait_for(self._process.stdout.readline(), 30.0))

    async def dies_of(self, word):
        """The exit code of a process that is told to do what it does not survive."""
        self._process.stdin.write(f"{word}\n".encode())
        said = await asyncio.wait_for(self._process.stdout.read(), 30.0)
        assert b"written" not in said
        if said:
            self._process.stdin.close()
        return await self._process.wait() or len(said)

    async def end(self):
        if self._process.returncode is None:
            self._process.stdin.close()
        await self._process.wait()

    async def kill(self):
        self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def holders(memory, n, *wanted):
    started = await asyncio.gather(*(Holder.start(memory, *wanted) for _ in range(n)))
    try:
        yield started
    finally:
        await asyncio.gather(*(holder.end() for holder in started))


async def until(holds):
    """Wait for what another process does in its own time; the test's time-out bounds it."""
    while True:
        found = holds()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        await asyncio.sleep(0.02)


async def references(memory, n):
    async def settled():
        stats = await memory.stats()
        return stats is not None and sum(entry.references for entry in stats.entries) == n and stats

    return await until(settled)
