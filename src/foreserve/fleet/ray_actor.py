"""The Ray actors: one a replica with its engine's process as a child, one a node with the weights of all of them.

What they run is what the local launcher runs, so that a replica is the same on a cluster as on one machine. Ray itself
is not needed to import this.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence

import msgspec

from foreserve import __version__
from foreserve.core import EngineSpec
from foreserve.fleet.local import LocalLauncher
from foreserve.fleet.local_connection import LocalConnection
from foreserve.fleet.memory import Memory
from foreserve.fleet.ray_outbox import Batch, Outbox
from foreserve.messages import FromWorker, decode_to_worker, encode
from foreserve.settings import Environment, RuntimeSettings


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Where an actor has found itself."""

    node: str
    host: str
    pid: int
    version: str


class ReplicaActor:
    """One replica. Its methods are called by its gateway alone; `take` and `poll` one at a time each."""

    def __init__(self, log_level: str) -> None:
        _log(log_level)
        self._launcher = LocalLauncher()
        self._outbox = Outbox(self._full)
        self._connection: LocalConnection | None = None

    async def found(self) -> Found:
        """Where this runs."""
        return found()

    async def start(self, name: str, spec: bytes, env: Mapping[str, str]) -> None:
        """Start the engine of this spec (msgpack) with `env` beneath its own variables."""
        known = msgspec.msgpack.decode(spec, type=EngineSpec)
        known = msgspec.structs.replace(known, env={**env, **known.env})
        connection = await self._launcher.launch(name, known, self)
        assert isinstance(connection, LocalConnection)
        self._connection = connection

    async def take(self, messages: Sequence[bytes]) -> None:
        """Messages of the gateway, in order."""
        if self._connection is not None:
            for message in messages:
                self._connection.send(decode_to_worker(message))

    async def poll(self) -> Batch:
        """What the replica has said since the last poll; waits until it says something."""
        return await self._outbox.take()

    async def stop(self, grace_s: float) -> None:
        """As `Connection.stop`."""
        if self._connection is not None:
            await self._connection.stop(grace_s)

    async def kill(self) -> None:
        """As `Connection.kill`."""
        if self._connection is not None:
            self._connection.kill()

    # --- Listener

    def heard(self, message: FromWorker) -> None:
        self._outbox.put(encode(message))

    def exited(self, reason: str) -> None:
        self._outbox.end(reason)

    def _full(self, full: bool) -> None:
        if self._connection is not None:
            self._connection.pause(full)


class NodeActor:
    """Holds read-only weights once for all replicas of an app on one node."""

    def __init__(self, settings: bytes, log_level: str) -> None:
        _log(log_level)
        self._settings = msgspec.msgpack.decode(settings, type=RuntimeSettings)
        self._memory: Memory | None = None

    async def env(self) -> dict[str, str]:
        """What a worker on this node needs in its environment to find the owner of weights."""
        if self._memory is None:
            self._memory = Memory(self._settings, Environment.read().cache)
        return self._memory.env()

    async def close(self) -> None:
        """End the owner and remove its folder."""
        if self._memory is not None:
            await self._memory.close()


def found() -> Found:
    """Of the process that asks, an actor's."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return Found(node=node, host=socket.gethostname(), pid=os.getpid(), version=__version__)


def _log(level: str) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("foreserve").setLevel(level)
