"""Replicas as worker processes on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from foreserve.core import EngineSpec
from foreserve.fleet.contexts import Contexts
from foreserve.fleet.local_connection import LocalConnection
from foreserve.fleet.memory import Memory
from foreserve.fleet.stages import Present
from foreserve.ports import Connection, Listener
from foreserve.runtime.wire import MAX_MESSAGE_BYTES


class LocalLauncher:
    """Starts replicas as processes of this machine; see `runtime.worker` for the other side.

    A message is at most `max_message_bytes` long, either way. With `contexts` processes are forked out of those that
    have the engine's imports; without, each is a new interpreter. With `memory` workers share their read-only weights,
    and loading them begins before their process does. Both are the caller's to close after this.
    """

    def __init__(
        self,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        contexts: Contexts | None = None,
        memory: Memory | None = None,
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._contexts = contexts
        self._memory = memory
        self._connections: dict[LocalConnection, None] = {}

    async def launch(self, name: str, spec: EngineSpec, listener: Listener) -> Connection:
        """As `Launcher.launch`. An interpreter that does not exist or lacks packages is a `StartFailed`."""
        present = self.present(spec)  # before anything of it is fetched
        waits: Callable[[], str] = str
        if self._memory is not None:
            spec, listener, waits = self._memory.prepare(spec, listener)
        connection = LocalConnection(name, spec, listener, self._max_message_bytes, self._contexts, waits)
        connection.present = present
        self._connections = {known: None for known in self._connections if not known.gone.is_set()}
        self._connections[connection] = None
        await connection.start(spec)
        return connection

    def warm(self, spec: EngineSpec) -> None:
        """Begin what can be done before a replica like this is launched. Returns at once."""
        if self._contexts is not None:
            self._contexts.warm(spec)

    def present(self, spec: EngineSpec) -> Callable[[], Present | None]:
        """What is there now for a worker of `spec`, beside other workers; `None` until the memory owner answers."""
        up = self._contexts is not None and self._contexts.up(spec)
        held = None if self._memory is None else self._memory.held(spec.weights)

        def present() -> Present | None:
            if held is not None and not held.done():
                return None
            weights = held is not None and not held.cancelled() and held.result()
            return Present(workers=0, wants=bool(spec.weights), weights=weights, context=up)

        return present

    async def close(self) -> None:
        """End all processes, within about two seconds."""
        await asyncio.gather(*(connection.stop(2.0) for connection in self._connections))
        self._connections.clear()
