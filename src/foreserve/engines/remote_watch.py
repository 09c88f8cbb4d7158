"""Watches a remote server: its load every second, and the moment it goes away or hangs."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

import msgspec

from foreserve.clock import now
from foreserve.core import EngineLoad
from foreserve.engines.remote_metrics import Page
from foreserve.engines.remote_probe import Probe
from foreserve.engines.remote_pulse import Pulse
from foreserve.engines.remote_server import RemoteServer, Unreachable

log = logging.getLogger(__name__)

_EVERY_S = 1.0
_GONE = 2
"""So many probes in a row must be refused before a server counts as gone: one may hit a full backlog."""
_HUNG = 5
"""So many must time out, with not one byte of any answer between them, before it counts as hung."""
_READINGS = 3
"""So many readings in a row must show requests of others: what we send or end meanwhile shows in one or two."""


class Watch:
    """Probes until the server is gone or `close` is called. `load` is its last load, `None` when not known.

    With a `probe` it is also asked for one token when its `pulse` is silent.
    """

    def __init__(self, server: RemoteServer, pulse: Pulse, probe: Probe | None) -> None:
        self.load: EngineLoad | None = None
        self.missed = 0.0
        """When the server last was not there, in loop seconds: what answers next may have been started since."""
        self._server = server
        self._pulse = pulse
        # Often enough that a server which tells its progress tells it within the patience of a probe.
        self._every_s = _EVERY_S if probe is None else min(_EVERY_S, pulse.limit_s / 3)
        self._pace: tuple[float, float] | None = None
        self._others: deque[int] = deque([0] * _READINGS, _READINGS)
        self._noticed = False
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._look(), name=f"watch {server.url}")]
        if probe is not None:
            self._tasks.append(asyncio.create_task(self._probe(probe), name=f"probes of {server.url}"))

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
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _probe(self, probe: Probe) -> None:
        self._fail(await probe.watch())

    async def _look(self) -> None:
        misses = 0
        while not self._failed.done():
            await asyncio.sleep(self._every_s if misses == 0 else self._every_s / 2)
            asked, ours = now(), self._pulse.under_way
            try:
                page = None if misses else await self._server.metrics_in_time()
                if page is None:
                    self.load = None
                    await self._server.well()
                else:
                    self.load = self._read(page, ours)
                misses = 0
            except Unreachable as error:
                self.load = None
                self.missed = now() if error.gone else self.missed
                misses = 1 if self._pulse.last > asked else misses + 1
                if misses >= (_GONE if error.gone else _HUNG):
                    self._fail(str(error))

    def _read(self, page: Page, ours: int) -> EngineLoad:
        """The load that a page tells. We had `ours` requests there when it was asked for."""
        moved = self._pulse.told(page.progress, now())
        load, step = page.load, None
        if page.pace is not None:
            seconds, count = page.pace
            if self._pace is not None and count > self._pace[1]:
                step = (seconds - self._pace[0]) / (count - self._pace[1])
            self._pace = page.pace
        there = (load.running or 0) + (load.waiting or 0)
        # A count that stands still is not believed: it may be what was true at the last step, long ago.
        works = moved or page.progress is None
        self._others.append(max(0, there - max(ours, self._pulse.under_way)) if works else 0)
        others = min(self._others)
        if others and not self._noticed:
            self._noticed = True
            log.warning("%s has %d requests that did not come from here; it is given fewer", self._server.url, others)
        return msgspec.structs.replace(
            load,
            last_step_s=step if step is not None and step > 0 else None,
            others=None if load.running is None else others,
        )

    def _fail(self, reason: str) -> None:
        if not self._failed.done():
            self._failed.set_result(reason)
