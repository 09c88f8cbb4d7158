"""Starts simulated replicas on a virtual clock: the messages of any other, without a task or iterator per request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from foreserve.core import EngineSpec
from foreserve.fleet.inline import InlineLauncher
from foreserve.fleet.watch import LOOKS
from foreserve.ports import Connection, Listener
from foreserve.simulation.beats import Beats
from foreserve.simulation.replica import SimulatedConnection
from foreserve.simulation.twin import ENGINE

_PER_LIVENESS = 4
"""A replica beats at least so often within its liveness limit when it has work, and half as often when it has none."""


class SimulatedLauncher:
    """Implements `ports.Launcher` for specs of the simulated engine; others run in the loop as they are.

    `heartbeat_s` is how often a replica that has work tells its load (more often where its liveness limit asks for it),
    `start_s` replaces the start time of every profile. Each of `launched` is called with every new connection of a
    simulated replica before it starts: what goes wrong in a simulation is told to the connection.
    """

    def __init__(self, *, heartbeat_s: float = 1.0, start_s: float | None = None) -> None:
        self.launched: list[Callable[[SimulatedConnection], None]] = []
        self._heartbeat_s = heartbeat_s
        self._start_s = start_s
        self._inline = InlineLauncher(heartbeat_s=heartbeat_s)
        self._connections: dict[SimulatedConnection, None] = {}
        self._beats: dict[tuple[float, float], Beats] = {}

    async def launch(self, name: str, spec: EngineSpec, listener: Listener) -> Connection:
        """Start a replica. An interpreter or environment of its own means nothing to a simulated one."""
        if spec.factory != ENGINE:
            return await self._inline.launch(name, spec, listener)
        connection = SimulatedConnection(name, spec, listener, self._beats_of(spec), self._start_s, self._gone)
        self._connections[connection] = None
        for tell in self.launched:
            tell(connection)
        connection.start()
        return connection

    async def close(self) -> None:
        """End every replica."""
        connections = list(self._connections)
        for connection in connections:
            connection.kill()
        await asyncio.gather(*(connection.gone.wait() for connection in connections))
        await self._inline.close()

    def _gone(self, connection: SimulatedConnection) -> None:
        self._connections.pop(connection, None)

    def _beats_of(self, spec: EngineSpec) -> Beats:
        every_s = min(self._heartbeat_s, spec.liveness_s / _PER_LIVENESS)
        idle_s = max(every_s, spec.liveness_s / LOOKS * (LOOKS // 2))
        if (every_s, idle_s) not in self._beats:
            self._beats[every_s, idle_s] = Beats(every_s, idle_s)
        return self._beats[every_s, idle_s]
