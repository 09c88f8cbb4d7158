"""Asks a server for one token now and then: one that hangs may answer `/health` all the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from foreserve.clock import now
from foreserve.engines.remote_pulse import Pulse
from foreserve.engines.remote_server import Loading, RemoteServer, Unreachable

log = logging.getLogger(__name__)

PATHS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "1"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "1"}]},
}
"""Where one token can be had, the cheaper first, and for what."""

SICK = 2
"""So many failures of the server's own in a row, with no answer between them, before it counts as gone."""

_TICKS = 10.0


class Probe:
    """Sends probes to `server` when its `pulse` says so, one at a time, and judges by it whether the server hangs.

    A probe asks the served `model` for one token; it is withdrawn as soon as any other answer shows that the server
    works. A server that refuses such requests as wrong (one of embeddings alone, one that wants the client's key) is
    not probed any more.
    """

    def __init__(self, server: RemoteServer, model: str | None, pulse: Pulse) -> None:
        self._server = server
        self._model = model
        self._pulse = pulse
        self._paths = list(PATHS)
        self._sick = 0
        self._sent = 0.0
        self._task: asyncio.Task[str | None] | None = None

    async def first(self, progress: Callable[[], Awaitable[float | None]]) -> None:
        """One probe at the start. Raises Unreachable when it fails, or the server neither answers nor makes progress.

        At the start 503 is no sign of life but `not ready yet` (Loading): what is sent meanwhile would fail.
        `progress` reads the server's counter.
        """
        self._pulse.told(await progress(), now())
        try:
            async with asyncio.timeout(self._pulse.limit_s):
                sick = await self._ask(loads=True)
        except TimeoutError:
            if not self._pulse.told(await progress(), now()):
                raise Unreachable(self._words(self._pulse.limit_s), gone=False) from None
            return
        if sick is not None:
            raise Unreachable(sick, gone=False)
        self._pulse.proved(now())

    async def watch(self) -> str:
        """Probes until the server is to be given up; returns why, in words."""
        tick = min(0.25, self._pulse.limit_s / _TICKS)
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        try:
            while self._paths:
                before = now()
                await asyncio.sleep(tick)
                late_s = now() - before - tick
                if late_s > tick:
                    # We have stood still ourselves, and what came meanwhile is still to be read.
                    self._pulse.paused(late_s)
                    self._sent += late_s
                if (reason := await self._look()) is not None:
                    return reason
        finally:
            if self._task is not None:
                self._task.cancel()
        return await never

    async def _look(self) -> str | None:
        if self._task is None:
            if self._pulse.due(now()):
                self._sent = now()
                self._pulse.probed(self._sent)
                self._task = asyncio.create_task(self._ask(), name=f"probe {self._server.url}")
            return None
        if self._task.done():
            task, self._task = self._task, None
            return self._judge(task)
        if self._pulse.last > self._sent:
            # Its answer would tell nothing new.
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        elif self._pulse.hangs(self._sent, now()):
            return self._words(now() - self._pulse.last)
        return None

    def _judge(self, task: asyncio.Task[str | None]) -> str | None:
        try:
            sick = task.result()
        except Unreachable:
            sick = None  # its health tells more, and is asked all the time
            if not self._pulse.hangs(self._sent, now()):
                return None
            return self._words(now() - self._pulse.last)
        if sick is None:
            self._sick = 0
            self._pulse.proved(now())
            return None
        self._sick += 1
        return sick if self._sick >= SICK else None

    async def _ask(self, *, loads: bool = False) -> str | None:
        """Asks for one token, where the server takes such a request. What is wrong with it, `None` when it is well.

        With `loads` it may still be loading: raises Loading then. Later a 503 says that it is full, so that it works.
        """
        while self._paths:
            path = self._paths[0]
            words: dict[str, Any] = {} if self._model is None else {"model": self._model}
            status = await self._server.post(path, {**words, **PATHS[path], "max_tokens": 1, "temperature": 0})
            if status in (500, 502, 504):
                return f"{self._server.url}{path} answers {status} to a request for one token"
            if loads and status == 503:
                raise Loading(f"{self._server.url}{path} answers 503: it is not ready yet", gone=False)
            if status < 400 or status in (429, 503):
                return None
            del self._paths[0]
        log.info("%s takes no request for one token (status %d), so it is not probed by one", self._server.url, status)
        return None

    def _words(self, silent_s: float) -> str:
        under_way = self._pulse.under_way
        also = f" nor to {under_way} others under way" if under_way else ""
        return f"{self._server.url} hangs: no answer to a request for one token{also} within {silent_s:.1f} s"
