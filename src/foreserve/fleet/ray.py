"""Replicas as actors of a Ray cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from foreserve.core import EngineSpec
from foreserve.fleet.ray_cluster import Cluster
from foreserve.fleet.ray_connection import RayConnection
from foreserve.fleet.ray_nodes import Nodes
from foreserve.ports import Connection, Launcher, Listener
from foreserve.runtime.wire import MAX_MESSAGE_BYTES
from foreserve.settings import RuntimeSettings


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What Ray keeps free for one replica on its node."""

    cpus: float = 1.0
    gpus: float = 0.0
    resources: dict[str, float] = {}

    def words(self) -> str:
        """For people: `1 CPU, 2 GPU`."""
        every: Mapping[str, float] = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return ", ".join(f"{amount:g} {name}" for name, amount in every.items() if amount) or "nothing"


class RayLauncher:
    """Starts each replica as an actor with the engine's process as its child, on a node that has room for `demand`.

    Ray restarts and repeats nothing: the fleet does. Actors end with this process, however that ends. A replica that
    finds no node within `place_s` has failed to start; its own start limit begins after that. A message is at most
    `max_message_bytes` long, either way. `settings` says how weights are shared among the replicas of a node.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: RuntimeSettings | None = None,
        *,
        demand: Demand | None = None,
        place_s: float = 120.0,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._cluster = cluster
        self._nodes = Nodes(cluster, settings or RuntimeSettings())
        self._demand = demand or Demand()
        self._place_s = place_s
        self._max_message_bytes = max_message_bytes
        self._connections: dict[RayConnection, None] = {}

    async def launch(self, name: str, spec: EngineSpec, listener: Listener) -> Connection:
        """As `Launcher.launch`. Returns at once; a cluster that cannot be joined is a `StartFailed`."""
        return self._launch(name, spec, listener, self._demand)

    def asking(self, demand: Demand) -> Launcher:
        """This launcher, for replicas that need something else. Closed with this one."""
        return _Asking(self, demand)

    def _launch(self, name: str, spec: EngineSpec, listener: Listener, demand: Demand) -> RayConnection:
        options = {"num_cpus": demand.cpus, "num_gpus": demand.gpus, "resources": demand.resources}
        connection = RayConnection(
            name,
            spec,
            listener,
            cluster=self._cluster,
            nodes=self._nodes,
            options=options,
            wants=demand.words(),
            place_s=self._place_s,
            max_message_bytes=self._max_message_bytes,
        )
        self._connections = {known: None for known in self._connections if not known.released}
        self._connections[connection] = None
        return connection

    async def close(self) -> None:
        """End all replicas, within about two seconds, then leave the cluster."""
        await asyncio.gather(*(connection.stop(2.0) for connection in self._connections))
        await asyncio.gather(*(connection.release() for connection in self._connections))
        self._connections.clear()
        await self._nodes.close()
        await self._cluster.close()


class _Asking:
    """A launcher's other demand."""

    def __init__(self, launcher: RayLauncher, demand: Demand) -> None:
        self._launcher = launcher
        self._demand = demand

    async def launch(self, name: str, spec: EngineSpec, listener: Listener) -> Connection:
        return self._launcher._launch(name, spec, listener, self._demand)

    async def close(self) -> None:
        """Nothing: what it launched is the launcher's."""
