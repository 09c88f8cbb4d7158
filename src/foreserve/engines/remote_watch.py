"""Watches a remote server: its load every second, and the moment it goes away."""

from __future__ import annotations

import asyncio

from foreserve.core import EngineLoad
from foreserve.engines.remote_server import RemoteServer, Unreachable

_EVERY_S = 1.0
_GONE = 2
"""So many probes in a row must be refused before a server counts as gone: one may hit a full backlog."""
_HUNG = 5
"""So many must time out, with not one byte of any answer between them, before it counts as hung."""


class Watch:
    """Probes until the server is gone or `close` is called. `load` is its last load, `None` when not known."""

    def __init__(self, server: RemoteServer) -> None:
        self.load: EngineLoad | None = None
        self._server = server
        self._heard = False
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._probe(), name=f"watch {server.url}")

    def heard(self) -> None:
        """A part of some answer has come: the server lives, however busy it is."""
        self._heard = True

    async def failed(self) -> str:
        """Returns why, once the server is gone."""
        return await asyncio.shield(self._failed)

    async def lost(self) -> str | None:
        """Why the server is gone, asked right now; `None` when it is there, or only slow to say so."""
        try:
            await self._server.well()
        except Unreachable as error:
            if error.gone:
                self._fail(str(error))
                return str(error)
        return None

    async def close(self) -> None:
        """Stop watching."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _probe(self) -> None:
        misses = 0
        while not self._failed.done():
            await asyncio.sleep(_EVERY_S if misses == 0 else _EVERY_S / 2)
            self._heard = False
            try:
                self.load = await self._server.load()
                if self.load is None:
                    await self._server.well()
                misses = 0
            except Unreachable as error:
                self.load = None
                misses = 1 if self._heard else misses + 1
                if misses >= (_GONE if error.gone else _HUNG):
                    self._fail(str(error))

    def _fail(self, reason: str) -> None:
        if not self._failed.done():
            self._failed.set_result(reason)
