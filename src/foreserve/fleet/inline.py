"""Replicas in the event loop itself: for tests, virtual clocks and tiny models. No process, descriptor or thread."""

from __future__ import annotations

import asyncio

from foreserve.core import EngineSpec
from foreserve.fleet.watch import Watch, heartbeat_s
from foreserve.messages import (
    Exit,
    FromWorker,
    Start,
    StartFailed,
    ToWorker,
    decode_from_worker,
    decode_to_worker,
    encode,
)  # fmt: skip
from foreserve.ports import Connection, Listener
from foreserve.runtime.factory import load_factory
from foreserve.runtime.host import EngineHost


class InlineConnection:
    """An engine host in this loop. Messages arrive in a later turn of the loop, as they would from a process."""

    pid: int | None = None

    def __init__(self, spec: EngineSpec, listener: Listener, copy: bool) -> None:
        self._copy = copy
        self._why: str | None = None
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._watch = Watch(spec, listener, self._end)
        self._host = EngineHost(load_factory, self._heard)
        self.ended = self._loop.create_task(self._wait())

    def send(self, message: ToWorker) -> None:
        """Deliver `message` in the loop's next turn."""
        if not self._host.closed.is_set():
            self._loop.call_soon(self._host.handle, decode_to_worker(encode(message)) if self._copy else message)

    async def stop(self, grace_s: float) -> None:
        """Close the engine, or abandon it after `grace_s`."""
        self._why = self._why or "stopped"
        self.send(Exit())
        try:
            async with asyncio.timeout(grace_s):
                await self._gone.wait()
        except TimeoutError:
            self._host.abandon()
            await self._gone.wait()

    def kill(self) -> None:
        """End as a killed process does: no more messages, tasks cancelled, no engine closed."""
        self._end("killed")

    def refuse(self, reason: str) -> None:
        """Fail the start."""
        self._why = f"the engine did not start: {reason}"
        self._loop.call_soon(self._watch.heard, StartFailed(reason))
        self._loop.call_soon(self._host.abandon)

    def _end(self, reason: str) -> None:
        self._why = self._why or reason
        self._host.abandon()

    def _heard(self, message: FromWorker) -> None:
        self._watch.heard(decode_from_worker(encode(message)) if self._copy else message)

    async def _wait(self) -> None:
        await self._host.closed.wait()
        failed = self._host.start_failed
        why = self._why or self._host.failed
        self._watch.exited(why or (f"the engine did not start: {failed}" if failed else "exited"))
        self._gone.set()


class InlineLauncher:
    """Starts engine hosts in the running loop.

    With `copy`, messages are encoded and decoded on their way, so that engines see exactly what they would see in a
    process (a payload's structs as plain values); without, objects are passed as they are, which is faster and the
    same to an engine that reads its payload by `msgspec.convert`. `heartbeat_s` replaces the interval that follows
    from a replica's liveness limit: a long simulation wants few.
    """

    def __init__(self, *, copy: bool = False, heartbeat_s: float | None = None) -> None:
        self._copy = copy
        self._heartbeat_s = heartbeat_s
        self._connections: dict[InlineConnection, None] = {}

    async def launch(self, name: str, spec: EngineSpec, listener: Listener) -> Connection:
        """Start a replica. A spec with an interpreter or environment of its own fails: there is no process for them."""
        connection = InlineConnection(spec, listener, self._copy)
        self._connections[connection] = None
        connection.ended.add_done_callback(lambda _: self._connections.pop(connection, None))
        if own := [word for word in ("python", "env") if getattr(spec, word)]:
            reason = f"{name}: the inline launcher runs engines in this process, so {' and '.join(own)} cannot be set"
            connection.refuse(reason)
        else:
            connection.send(Start(spec.factory, spec.options, self._heartbeat_s or heartbeat_s(spec), spec.weights))
        return connection

    async def close(self) -> None:
        """End every replica."""
        for connection in list(self._connections):
            connection.kill()
        await asyncio.gather(*(connection.ended for connection in list(self._connections)))
