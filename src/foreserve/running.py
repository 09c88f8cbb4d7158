"""An app that runs: its services from their start to their end, and what is kept of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from foreserve import __version__
from foreserve.clock import offload, wall
from foreserve.core import Outcome
from foreserve.dispatch.journal import Journal
from foreserve.dispatch.ledger import Ledger
from foreserve.dispatch.recorded import begin, ended
from foreserve.fleet.local import LocalLauncher
from foreserve.fleet.outside import Outside
from foreserve.fleet.replicas import Replicas
from foreserve.loads import LoadStore
from foreserve.ports import Launcher
from foreserve.rows import state_folder
from foreserve.samples import Keep, SampleStore
from foreserve.scaling import ScalingDecision
from foreserve.services.foreseeing import Foreseer
from foreserve.services.forgetting import expire_left
from foreserve.services.pipeline import ServablePipeline, ServedPipeline
from foreserve.services.runtime_status import RuntimeView
from foreserve.services.served import Progress, Served, leasts
from foreserve.settings import AppSettings, StateSettings
from foreserve.state import History
from foreserve.wiring import Wiring

log = logging.getLogger(__name__)


class Running:
    """The services of an app, started. `observers` hear every outcome, in order, on the event loop.

    `launcher` starts all replicas in place of those that the settings name.
    """

    def __init__(
        self,
        settings: AppSettings,
        kinds: dict[str, Served],
        launcher: Launcher | None = None,
        pipelines: Mapping[str, ServablePipeline] | None = None,
    ) -> None:
        self.settings = settings
        self.kinds = kinds
        """By name, as the app has them; `add` adds to them."""
        self.ledger = Ledger()
        self.observers: list[Callable[[Outcome], None]] = []
        self.scaled: list[Callable[[ScalingDecision], None]] = []
        """Each hears every decision on a number of replicas."""
        self.history: History | None = None
        self.loads: LoadStore | None = None
        self.samples: SampleStore | None = None
        self.foreseers: dict[str, Foreseer] = {
            name: kind.foreseer for name, kind in kinds.items() if hasattr(kind, "foreseer")
        }
        """Of the services whose answers are foreseen, by name."""
        self.started = False
        """Whether every service has been started, with at least one replica ready."""
        self.decisions = _decisions(self.settings.state)
        """Where they are recorded."""
        self._wiring = Wiring(
            settings, self.ledger, self.decisions, settled=self._settled, scaled=self._scaled, only=launcher
        )
        self.services = self._wiring.services
        """By name."""
        self.outside = self._wiring.outside
        """Who starts servers for those services whose replicas are servers, where their number follows the load."""
        self.contexts, self.memory = self._wiring.contexts, self._wiring.memory
        self._expiring: asyncio.Task[None] | None = None
        for name, kind in kinds.items():
            self._wiring.wire(name, kind)
        if self._wiring.shares is not None:
            self._wiring.shares.check(leasts(kinds))
        self.pipelines = {
            name: ServedPipeline(name, pipeline, self.services, self.ledger, self._settled)
            for name, pipeline in (pipelines or {}).items()
        }
        """By name."""
        self.runtime = RuntimeView(self.services, self.memory, self.contexts)
        """What runs on this machine, and what it shares."""

    def _scaled(self, decision: ScalingDecision) -> None:
        if (outside := self.outside.get(decision.service)) is not None:
            outside.why = decision.why
        if self.loads is not None:
            self.loads.decided(decision)
        for tell in self.scaled:
            tell(decision)

    def fleet(self, name: str) -> Replicas | Outside:
        """What scaling scales of a service."""
        return self.outside.get(name) or self.services[name].replicas

    async def add(self, name: str, kind: Served) -> None:
        """Serve one more, from now on. What is learned of it lives as long as the server.

        Raises EngineStartError when no replica of it could be started; nothing is left then.
        """
        self.kinds[name] = kind
        service = self._wiring.wire(name, kind)
        try:
            if hasattr(kind, "foreseer"):
                self.foreseers[name] = kind.foreseer
                await kind.foreseer.start(name, None, None)
            await service.replicas.start()
        except BaseException:
            del self.kinds[name]
            self._wiring.forget(name)
            if (foreseer := self.foreseers.pop(name, None)) is not None:
                await foreseer.stop()
            raise

    def _settled(self, outcome: Outcome) -> None:
        if self.history is not None:
            self.history.record(outcome, wall())
        for tell in self.observers:
            tell(outcome)

    async def start(self, progress: Progress | None = None) -> None:
        """Prepare every service, then start all replicas. Raises ConfigError or EngineStartError; nothing is left."""
        if self.settings.state.history:
            self.history = History.open(self.settings.state)
        try:
            for kind in self.kinds.values():
                await offload(lambda kind=kind: kind.prepare(progress))  # type: ignore[misc]
            for served in self.pipelines.values():
                served.pipeline.prepared(self.kinds)
            await self._recall()
            if self.contexts is not None:
                await self.contexts.recall()
            await self._start_all()
        except BaseException:
            await self.stop(0.0)
            raise
        self.started = True
        for service in self.services.values():
            if service.scaling is not None:
                service.scaling.start()
            launcher, spec = self._wiring.launcher(service.settings.launcher), service.replicas.spec
            if service.replicas.on_demand and spec is not None and isinstance(launcher, LocalLauncher):
                launcher.warm(spec)

    async def _recall(self) -> None:
        """What came before to those services whose number of replicas follows it."""
        scaled = {name: service.scaling for name, service in self.services.items() if service.scaling is not None}
        state = self.settings.state
        if scaled and state.history:
            keep = {name: self.services[name].settings.scaling.keep_days for name in scaled}
            self.loads = await offload(lambda: LoadStore.open(state_folder(state), keep))
        if self._wiring.shares is not None:
            for name, kind in self.kinds.items():
                if hasattr(kind, "memory_bytes"):
                    self._wiring.shares.memory_gb[name] = await offload(kind.memory_bytes) / 2**30
            self._wiring.shares.check(leasts(self.kinds))
        for scaling in scaled.values():
            await scaling.prepare(self.loads)

    async def _start_all(self) -> None:
        """Side by side. When one fails, or this is cancelled, nothing of it runs on."""
        learned = asyncio.create_task(self._foresee(), name="foresight")
        for outside in self.outside.values():
            outside.start()
        replicas = [asyncio.create_task(service.replicas.start()) for service in self.services.values()]
        every = [*replicas, learned]
        try:
            await asyncio.wait(every, return_when=asyncio.FIRST_EXCEPTION)
            for task in every:
                if task.done():
                    task.result()
        except BaseException:
            await asyncio.wait([learned])  # it may be in a thread, and what it opens there has to be closed
            await asyncio.gather(*(service.replicas.stop(0.0) for service in self.services.values()))
            for task in replicas:
                task.cancel()
            await asyncio.gather(*every, return_exceptions=True)
            raise

    async def _foresee(self) -> None:
        """Take up what was learned before, where that is kept."""
        state = self.settings.state
        folder = state_folder(state) if state.history else None
        kept = {
            n: f.settings for n, f in self.foreseers.items() if f.settings.remember and f.settings.predictor != "off"
        }
        if folder is not None and kept:
            keep = {name: Keep(rows=settings.keep_rows, days=settings.keep_days) for name, settings in kept.items()}
            self.samples = await offload(lambda: SampleStore.open(folder, keep))
        if folder is not None:
            self._expiring = asyncio.create_task(_expire_left(folder, kept), name="expiry of what nobody serves")
        for name, foreseer in self.foreseers.items():
            remembers = self.samples is not None and name in kept
            await foreseer.start(name, self.samples if remembers else None, folder if remembers else None)

    async def stop(self, drain_s: float | None = None) -> None:
        """Let what runs finish, for at most `drain_s` (the server's setting when `None`), then end every replica."""
        drain_s = self.settings.server.drain_s if drain_s is None else drain_s
        for service in self.services.values():
            if service.scaling is not None:
                await service.scaling.stop()
        for pipeline in self.pipelines.values():
            await pipeline.drain(drain_s)
        self._refuse_all()
        for outside in self.outside.values():
            await outside.stop()
        await asyncio.gather(*(service.replicas.stop(drain_s) for service in self.services.values()))
        self._refuse_all()  # what was still running may have been queued again
        await self._wiring.close()
        if self._expiring is not None:
            self._expiring.cancel()
            await asyncio.wait([self._expiring])
        for foreseer in self.foreseers.values():
            await foreseer.stop()
        for kept in (self.samples, self.loads):
            if kept is not None:
                kept.close()
        if self.history is not None:
            self.history.close()
        if self.decisions is not None:
            self.decisions.close()

    def _refuse_all(self) -> None:
        for service in self.services.values():
            service.dispatcher.give_up("the server is stopping")


def _decisions(state: StateSettings) -> Journal | None:
    """Where decisions are recorded. Raises ConfigError when it cannot be written."""
    if state.decisions is None:
        return None
    virtual = getattr(asyncio.get_running_loop(), "virtual", False)
    journal = Journal(
        Path(state.decisions).expanduser(),
        "the recording of decisions",
        threaded=not virtual,
        most_bytes=int(state.decisions_mb * 1e6),
        last=ended,
    )
    begin(journal, __version__)
    return journal


async def _expire_left(folder: Path, served: Collection[str]) -> None:
    """Once a day; a failure is logged and the next day's to mend."""
    while True:
        at = wall()
        try:
            for name in await offload(lambda: expire_left(folder, served, at)):  # noqa: B023 - awaited here
                log.info("what was learned of %s is deleted: nothing has come of it for long", name)
        except Exception:
            log.exception("what was learned of services that are served no more could not be looked through")
        await asyncio.sleep(86_400.0)
