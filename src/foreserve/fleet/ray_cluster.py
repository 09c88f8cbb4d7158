"""The connection of this process to a Ray cluster. Ray is imported here, when it is asked for."""

from __future__ import annotations

import asyncio
import logging
import os
from importlib.util import find_spec
from typing import Any, Final

from foreserve import clock
from foreserve.errors import ConfigError, EngineStartError

log = logging.getLogger(__name__)

VERSIONS: Final = "2.60"
"""The minor version of Ray that the tests were run with."""

EXTRA: Final = "pip install 'foreserve[ray]'"


def require() -> None:
    """Raises ConfigError where Ray is not installed."""
    if find_spec("ray") is None:
        raise ConfigError(f"replicas on Ray need the package ray, which is not installed here: {EXTRA}")


class Cluster:
    """Joined when first asked for. A cluster that this has started ends with `close`; any other is only left.

    Without `address` a cluster of this machine alone is started, unless the process is part of one already;
    `object_store_mb` (MiB) bounds its store. All calls of Ray that may wait are made off the loop.
    """

    def __init__(self, address: str | None = None, object_store_mb: int = 256) -> None:
        """Raises ConfigError where Ray is not installed."""
        require()
        self.address = address
        self._object_store_mb = object_store_mb
        self._joining: asyncio.Task[Any] | None = None
        self._ours = self._left = False

    async def joined(self) -> Any:
        """The module `ray`, connected. Raises EngineStartError where there is no such cluster."""
        if self._left:
            raise EngineStartError("the Ray cluster has been left: the server is stopping")
        if self._joining is None:
            self._joining = asyncio.create_task(clock.offload(self._join), name="joining the Ray cluster")
        try:
            return await asyncio.shield(self._joining)
        except EngineStartError:
            self._joining = None  # the next replica tries again
            raise

    def _join(self) -> Any:
        # Ray would start another cluster, by itself, for any call that comes after its end.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        import ray

        if not ray.__version__.startswith(f"{VERSIONS}."):
            log.warning("Ray %s is installed; Foreserve is tested with %s alone", ray.__version__, VERSIONS)
        if ray.is_initialized():
            return ray
        words: dict[str, Any] = {"address": self.address or "local"}
        if self.address is None:
            # Ray would run engines at nice 15, behind all else; as worker processes they have our own priority.
            os.environ.setdefault("RAY_worker_niceness", "0")
            words |= {"include_dashboard": False, "object_store_memory": self._object_store_mb * 2**20}
        logging.getLogger("ray").setLevel(logging.WARNING)
        logging.getLogger("ray._private.worker").setLevel(logging.ERROR)  # signals are ours to handle
        try:
            ray.init(configure_logging=False, log_to_driver=True, **words)
        except Exception as error:
            where = f"the Ray cluster at {self.address} cannot be joined" if self.address else "Ray cannot be started"
            raise EngineStartError(f"{where}: {' '.join(str(error).split())[:500]}") from error
        self._ours = True
        log.info("Ray: %s", "joined " + self.address if self.address else "a cluster of this machine was started")
        return ray

    async def close(self) -> None:
        """Leave it, and end one that was started for us. All that was to be asked of it has been."""
        self._left = True
        if self._joining is not None:
            await asyncio.wait([self._joining])
        if self._ours:
            self._ours = False
            import ray

            await clock.offload(ray.shutdown)
