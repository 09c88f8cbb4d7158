"""One actor on each node of a Ray cluster that weights are needed on: they reach the node once and are shared there."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from foreserve import clock
from foreserve.fleet.process import log_level
from foreserve.fleet.ray_actor import NodeActor
from foreserve.fleet.ray_cluster import Cluster
from foreserve.settings import RuntimeSettings

log = logging.getLogger(__name__)

CLOSE_S = 3.0


class Nodes:
    """The nodes' actors, by the node's id, made when first wanted and again when they are lost."""

    def __init__(self, cluster: Cluster, settings: RuntimeSettings) -> None:
        self._cluster = cluster
        self._settings = msgspec.msgpack.encode(settings)
        self._actors: dict[str, Any] = {}

    async def env(self, node: str) -> dict[str, str]:
        """What workers on `node` need to share their weights; empty where that is not to be had."""
        ray = await self._cluster.joined()
        for _ in range(2):
            actor = self._actors.get(node)
            if actor is None:
                actor = self._actors[node] = await clock.offload(lambda: self._make(ray, node))
            try:
                return dict(await actor.env.remote())
            except ray.exceptions.RayError as error:
                log.warning("the owner of weights on node %s is gone: %s", node, str(error).partition("\n")[0])
                if self._actors.get(node) is actor:
                    del self._actors[node]
        return {}

    def _make(self, ray: Any, node: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        made = ray.remote(NodeActor).options(num_cpus=0, max_restarts=0, scheduling_strategy=there)
        return made.remote(self._settings, log_level())

    async def close(self) -> None:
        """End the owners, and the actors."""
        actors, self._actors = list(self._actors.values()), {}
        if not actors:
            return
        ray = await self._cluster.joined()

        async def end(actor: Any) -> None:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await actor.close.remote()
            except (TimeoutError, ray.exceptions.RayError):
                pass
            await clock.offload(lambda: ray.kill(actor))

        await asyncio.gather(*(end(actor) for actor in actors))
