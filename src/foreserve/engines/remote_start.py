"""What a running server is, asked before it gets its first request: asked again while it only comes up."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from foreserve.clock import now
from foreserve.engines.remote_probe import Probe
from foreserve.engines.remote_pulse import Pulse
from foreserve.engines.remote_server import Loading, Locked, RemoteServer, Served, Unreachable
from foreserve.errors import EngineStartError

log = logging.getLogger(__name__)

_AWAIT_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Found:
    """A server that is up: its models and make, how many tokens its KV cache holds where it tells, what probes it."""

    served: Served
    kv_tokens: float | None
    probe: Probe | None


@dataclass(frozen=True, slots=True)
class RemoteStart:
    """How a server is asked: for `model` if any; whether with a key of ours; by a probe as well if there is a pulse."""

    server: RemoteServer
    model: str | None
    keyed: bool
    pulse: Pulse | None

    async def found(self, await_s: float, loading_s: float) -> Found:
        """Waits up to `await_s` for one that is not there, up to `loading_s` for one that says it loads.

        Raises EngineStartError when it is still not there, or for what does not mend itself: another model, a key.
        """
        began, told = now(), False
        while True:
            try:
                return await self._asked()
            except Unreachable as error:
                loading = isinstance(error, Loading)
                if now() + _AWAIT_EVERY_S > began + max(await_s, loading_s if loading else 0.0):
                    raise EngineStartError(str(error)) from None
                if loading and not told:
                    told = True
                    log.info("%s; it is asked again every %g s", error, _AWAIT_EVERY_S)
            await asyncio.sleep(_AWAIT_EVERY_S)

    async def _asked(self) -> Found:
        served = await self._served()
        kv_tokens = await self._kv_tokens(served)
        if self.pulse is None:
            return Found(served, kv_tokens, None)
        probe = Probe(self.server, self.model or next(iter(served.models), None), self.pulse)
        await probe.first(self._progress)
        return Found(served, kv_tokens, probe)

    async def _served(self) -> Served:
        try:
            served = await self.server.served()
        except Locked as error:
            if self.model is None or self.keyed:
                raise EngineStartError(str(error)) from None
            return Served(models=(self.model,))
        # llama.cpp serves its one model whatever the request calls it.
        if served.make == "llamacpp" or not served.models or self.model in (None, *served.models):
            return served
        raise EngineStartError(f"{self.server.url} has no model {self.model!r}; valid: {', '.join(served.models)}")

    async def _kv_tokens(self, served: Served) -> float | None:
        if served.make == "llamacpp" and (tokens := await self.server.cache_tokens()) is not None:
            return tokens
        page = await self.server.metrics_in_time()
        return None if page is None else page.kv_tokens

    async def _progress(self) -> float | None:
        page = await self.server.metrics_in_time()
        return None if page is None else page.progress
