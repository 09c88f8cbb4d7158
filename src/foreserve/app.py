"""What is served, and the one place where its parts are wired together."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from foreserve import __version__, registry
from foreserve.chosen import (
    admission_name,
    make_admission,
    make_placement,
    make_policy,
    make_scaling_policy,
    placement_name,
)
from foreserve.clock import offload, wall
from foreserve.core import EngineInfo, Outcome
from foreserve.dispatch.decisions import Made
from foreserve.dispatch.dispatcher import Dispatcher
from foreserve.dispatch.journal import Journal
from foreserve.dispatch.ledger import Ledger
from foreserve.dispatch.recorded import Tape, begin, ended, recorded
from foreserve.errors import ConfigError
from foreserve.fleet.autoscaler_wrappers import Bounded, ToZero
from foreserve.fleet.contexts import Contexts
from foreserve.fleet.inline import InlineLauncher
from foreserve.fleet.local import LocalLauncher
from foreserve.fleet.memory import Memory
from foreserve.fleet.outside import Outside
from foreserve.fleet.outside_tell import Command, Teller, Webhook
from foreserve.fleet.replicas import Replicas
from foreserve.fleet.scaler import Fleet
from foreserve.fleet.sharing import Shares
from foreserve.loads import LoadStore
from foreserve.parsing import parse
from foreserve.ports import Admission, BatchPolicy, Kind, Launcher, Placement
from foreserve.rows import state_folder
from foreserve.samples import Keep, SampleStore
from foreserve.scaling import ScalingDecision
from foreserve.services.base import Service
from foreserve.services.foreseeing import Foreseer
from foreserve.services.forgetting import expire_left
from foreserve.services.joining import expect
from foreserve.services.runtime_status import RuntimeView
from foreserve.services.scaling import ServiceScaling
from foreserve.services.together import agree
from foreserve.settings import (
    AppSettings,
    Environment,
    MachineSettings,
    RuntimeSettings,
    ServerSettings,
    ServiceSettings,
    Settings,
    StateSettings,
    UpstreamSettings,
)
from foreserve.state import History

log = logging.getLogger(__name__)

S = TypeVar("S", bound=Settings)
Progress = Callable[[float, str], None]
"""`progress(done, what)`: the share done (0 to 1) of one slow step of a preparation, and its name."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


class Served(Kind, Protocol):
    """A kind as an app file makes it: with settings, and a slow first step that is done once."""

    @property
    def settings(self) -> ServiceSettings: ...
    def prepare(self, progress: Progress | None) -> None:
        """Do what must be done once on a machine, such as turning weights into an engine's form. May take minutes."""
        ...


class App:
    """The services of one house, by name, and how they are reached.

    `App(chat=LLM("smollm2"), server={"port": 9000})`. A name that is no Python word goes in as `**{"my-model": …}`.
    Raises ConfigError for what is not a service, a bad name and wrong settings.
    """

    def __init__(
        self,
        *,
        server: Mapping[str, Any] | ServerSettings | None = None,
        state: Mapping[str, Any] | StateSettings | None = None,
        machine: Mapping[str, Any] | MachineSettings | None = None,
        runtime: Mapping[str, Any] | RuntimeSettings | None = None,
        **services: Served,
    ) -> None:
        self.settings = AppSettings(
            server=_settings(server, ServerSettings, "server"),
            state=_settings(state, StateSettings, "state"),
            machine=_settings(machine, MachineSettings, "machine"),
            runtime=_settings(runtime, RuntimeSettings, "runtime"),
        )
        if not services:
            raise ConfigError("App(): nothing to serve; name at least one service, as in App(chat=LLM('smollm2'))")
        for name, kind in services.items():
            if not NAME.fullmatch(name):
                raise ConfigError(f"App(): {name!r} cannot name a service; valid: letters, digits and . _ / -")
            if not hasattr(kind, "settings") or not hasattr(kind, "engines"):
                raise ConfigError(
                    f"App(): {name!r} is {type(kind).__name__}, not a service; "
                    f"valid: {', '.join(registry.names('kind'))}, as in App({name}=LLM('smollm2'))"
                )
        agree(services, self.settings.runtime)
        self.services: dict[str, Served] = services

    def run(self, launcher: Launcher | None = None) -> Running:
        """Its parts, wired and not yet started. Call it on the event loop that will serve.

        `launcher` starts all replicas in place of those that the settings name, as the simulator's does.
        """
        return Running(self, launcher)


class Running:
    """A started app. `observers` hear every outcome, in order, on the event loop."""

    def __init__(self, app: App, launcher: Launcher | None = None) -> None:
        self.app = app
        self.settings = app.settings
        self._only = launcher
        self.ledger = Ledger()
        self.observers: list[Callable[[Outcome], None]] = []
        self.scaled: list[Callable[[ScalingDecision], None]] = []
        """Each hears every decision on a number of replicas."""
        self.history: History | None = None
        self.loads: LoadStore | None = None
        self.samples: SampleStore | None = None
        self.foreseers: dict[str, Foreseer] = {
            name: kind.foreseer for name, kind in app.services.items() if hasattr(kind, "foreseer")
        }
        """Of the services whose answers are foreseen, by name."""
        self.started = False
        """Whether every service has been started, with at least one replica ready."""
        self.decisions = _decisions(self.settings.state)
        """Where they are recorded."""
        self.outside: dict[str, Outside] = {}
        """Who starts servers for those services whose replicas are servers, where their number follows the load."""
        self._tapes: dict[str, Tape] = {}
        self._launchers: dict[str, Launcher] = {}
        runtime = self.settings.runtime
        self.contexts = Contexts(runtime.context_s) if runtime.fork else None
        """The processes out of which workers are forked, where they are."""
        self.memory = Memory(self.settings.runtime, Environment.read().cache)
        """Who holds read-only weights for all worker processes."""
        machine = self.settings.machine
        bounded = machine.replicas is not None or machine.memory_gb is not None
        self._shares = Shares(machine.replicas, machine.memory_gb) if bounded else None
        self._expiring: asyncio.Task[None] | None = None
        self.services = {name: self._wire(name, kind) for name, kind in app.services.items()}
        if self._shares is not None:
            self._shares.check(leasts(self.app.services))
        self.runtime = RuntimeView(self.services, self.memory, self.contexts)
        """What runs on this machine, and what it shares."""

    def _wire(self, name: str, kind: Served) -> Service:
        """Everything that one service consists of, and who tells whom."""
        settings = kind.settings
        policy, placement, admission = self._deciders(name, kind, settings.policy_options)
        dispatcher = Dispatcher(
            name,
            policy,
            placement,
            admission,
            self.ledger,
            max_wait_s=settings.queue.max_wait_s,
            settled=self._settling(kind),
        )
        # Until the first replica is ready: refused and counted, not queued for what may never come.
        dispatcher.unavailable = f"no replica of {name!r} has been ready yet"
        replicas = Replicas(
            name,
            kind.engines,
            self._launcher(settings.launcher),
            dispatcher,
            self._told(name),
            least=self._least(settings),
            drain_s=settings.scaling.drain_s,
            in_order=isinstance(settings, UpstreamSettings),
        )
        outside = None
        if self._only is None and isinstance(settings, UpstreamSettings) and settings.scaled:
            outside = _outside(name, settings, replicas, lambda urls: expect(self.services[name], urls))
            self.outside[name] = outside
        service = Service(name, kind, settings, dispatcher, replicas, self.ledger, self._settled)
        service.scaling = self._scaling(name, kind, replicas, outside or replicas, dispatcher)
        return service

    def _scaling(
        self, name: str, kind: Served, replicas: Replicas, fleet: Fleet, dispatcher: Dispatcher
    ) -> ServiceScaling | None:
        """Who decides how many replicas there are, where that is left open."""
        settings = kind.settings
        least, most = settings.bounds
        shares = None if isinstance(settings, UpstreamSettings) else self._shares  # servers run elsewhere
        policy = make_scaling_policy(name, settings.scaling)  # also where nobody asks it: what is wrong is told
        if least == most or (isinstance(settings, UpstreamSettings) and not settings.scaled):
            if shares is not None:
                shares.hold(name, least)
            return None
        bounded = Bounded(ToZero(policy, settings.scaling.idle_s))
        return ServiceScaling(
            name, settings.scaling, (least, most), bounded, replicas, fleet, dispatcher, self._scaled, shares
        )

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
        self.app.services[name] = kind
        self.services[name] = service = self._wire(name, kind)
        try:
            if hasattr(kind, "foreseer"):
                self.foreseers[name] = kind.foreseer
                await kind.foreseer.start(name, None, None)
            await service.replicas.start()
        except BaseException:
            del self.app.services[name], self.services[name]
            if (foreseer := self.foreseers.pop(name, None)) is not None:
                await foreseer.stop()
            raise

    def _least(self, settings: ServiceSettings) -> int | None:
        """How many replicas are started at the start; of servers that run already, all that do."""
        if isinstance(settings, UpstreamSettings) and (self._only is None or not settings.scaled):
            return 0 if settings.scaled and not settings.bounds[0] else None
        return settings.bounds[0]

    def _deciders(
        self, name: str, kind: Served, options: Mapping[str, Any]
    ) -> tuple[BatchPolicy, Placement, Admission]:
        """Who orders, places and admits, as the settings choose it; recorded where that is asked for."""
        settings = kind.settings
        policy = make_policy(name, policy_name(kind), options)
        placement, admission = make_placement(name, placement_name(kind)), make_admission(name, settings.queue, policy)
        if self.decisions is None:
            return policy, placement, admission
        made = Made(
            service=name,
            policy=policy_name(kind),
            options=dict(options),
            placement=placement_name(kind),
            admission=admission_name(settings.queue, policy),
            max_waiting=settings.queue.max_waiting,
            max_wait_s=settings.queue.max_wait_s,
        )
        tape = self._tapes.setdefault(name, Tape(name, self.decisions))
        return recorded(tape, made, policy, placement, admission)

    def _launcher(self, name: str) -> Launcher:
        if self._only is not None:
            return self._launchers.setdefault("", self._only)
        if name not in self._launchers:
            local = LocalLauncher(contexts=self.contexts, memory=self.memory)
            self._launchers[name] = InlineLauncher() if name == "inline" else local
        return self._launchers[name]

    def _told(self, name: str) -> Callable[[EngineInfo], None]:
        def told(info: EngineInfo) -> None:
            service, kind = self.services[name], self.app.services[name]
            before = policy_name(kind)
            service.info = info
            kind.ready(info)
            if policy_name(kind) != before:  # `auto`, and the engine batches otherwise than its name told
                log.info("%s: its engine is %s, so policy %s orders it", name, info.batching, policy_name(kind))
                self._adopt(name, kind)

        return told

    def _adopt(self, name: str, kind: Served) -> None:
        """Of a replica that is ready: it is served whatever the options, which were for the policy that was guessed."""
        policy_called = policy_name(kind)
        try:
            policy, _, admission = self._deciders(name, kind, kind.settings.policy_options)
        except ConfigError as error:
            log.error(
                "service %r: policy_options do not fit policy %r, which is used without them: %s; valid: name the "
                "`policy` that they are for", name, policy_called, error,
            )  # fmt: skip
            policy, _, admission = self._deciders(name, kind, {})
        self.services[name].dispatcher.adopt(policy, admission)

    def _settling(self, kind: Served) -> Callable[[Outcome], None]:
        """A request of this kind has ended, and is no group of others: its kind learns from it first."""

        def settled(outcome: Outcome) -> None:
            kind.settled(outcome)
            if (scaling := self.services[outcome.service].scaling) is not None:
                scaling.settled(outcome)
            self._settled(outcome)

        return settled

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
            for kind in self.app.services.values():
                await offload(lambda kind=kind: kind.prepare(progress))  # type: ignore[misc]
            await self._recall()
            await self._start_all()
        except BaseException:
            await self.stop(0.0)
            raise
        self.started = True
        for service in self.services.values():
            if service.scaling is not None:
                service.scaling.start()
            launcher, spec = self._launcher(service.settings.launcher), service.replicas.spec
            if service.replicas.on_demand and spec is not None and isinstance(launcher, LocalLauncher):
                launcher.warm(spec)

    async def _recall(self) -> None:
        """What came before to those services whose number of replicas follows it."""
        scaled = {name: service.scaling for name, service in self.services.items() if service.scaling is not None}
        state = self.settings.state
        if scaled and state.history:
            keep = {name: self.services[name].settings.scaling.keep_days for name in scaled}
            self.loads = await offload(lambda: LoadStore.open(state_folder(state), keep))
        if self._shares is not None:
            for name, kind in self.app.services.items():
                if hasattr(kind, "memory_bytes"):
                    self._shares.memory_gb[name] = await offload(kind.memory_bytes) / 2**30
            self._shares.check(leasts(self.app.services))
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
        self._refuse_all()
        for outside in self.outside.values():
            await outside.stop()
        await asyncio.gather(*(service.replicas.stop(drain_s) for service in self.services.values()))
        self._refuse_all()  # what was still running may have been queued again
        for launcher in self._launchers.values():
            await launcher.close()
        if self.contexts is not None:
            await self.contexts.close()
        await self.memory.close()
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


def leasts(services: Mapping[str, Served]) -> dict[str, int]:
    """Of each service that takes room on this machine; servers that run elsewhere take none."""
    settings = {name: kind.settings for name, kind in services.items()}
    return {
        name: each.bounds[0]
        for name, each in settings.items()
        if each.bounds[1] and not isinstance(each, UpstreamSettings)
    }


def _outside(
    name: str, settings: UpstreamSettings, replicas: Replicas, joins: Callable[[Sequence[str]], Awaitable[None]]
) -> Outside:
    scaling = settings.scaling
    teller: Teller
    if scaling.command is not None:
        teller = Command(scaling.command)
    else:
        teller = Webhook(scaling.webhook or "", scaling.webhook_key_env)
    return Outside(name, replicas, teller, settings.bounds[0], joins, settings.urls)


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


def policy_name(kind: Served) -> str:
    """The policy that orders it: the one that was chosen, or what suits its engine."""
    return kind.policy if kind.settings.policy == "auto" else kind.settings.policy


def _settings(given: Mapping[str, Any] | S | None, into: type[S], where: str) -> S:
    if isinstance(given, into):
        return given
    return parse(dict(given) if isinstance(given, Mapping) else {} if given is None else given, into, f"App(): {where}")
