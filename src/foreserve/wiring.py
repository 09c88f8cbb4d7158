"""How one service is wired together: its dispatcher, its replicas, who decides for it, and who tells whom."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from foreserve.chosen import (
    admission_name,
    make_admission,
    make_placement,
    make_policy,
    make_scaling_policy,
    placement_name,
)
from foreserve.core import EngineInfo, Outcome
from foreserve.dispatch.decisions import Made
from foreserve.dispatch.dispatcher import Dispatcher
from foreserve.dispatch.journal import Journal
from foreserve.dispatch.ledger import Ledger
from foreserve.dispatch.recorded import Tape, recorded
from foreserve.errors import ConfigError
from foreserve.fleet.autoscaler_wrappers import Bounded, ToZero
from foreserve.fleet.contexts import Contexts
from foreserve.fleet.inline import InlineLauncher
from foreserve.fleet.learned import Remembered
from foreserve.fleet.local import LocalLauncher
from foreserve.fleet.memory import Memory
from foreserve.fleet.outside import Outside
from foreserve.fleet.outside_tell import Command, Teller, Webhook
from foreserve.fleet.ray import Demand, RayLauncher
from foreserve.fleet.ray_cluster import Cluster
from foreserve.fleet.replicas import Replicas
from foreserve.fleet.scaler import Fleet
from foreserve.fleet.sharing import Shares
from foreserve.ports import Admission, BatchPolicy, Launcher, Placement
from foreserve.rows import state_folder
from foreserve.scaling import ScalingDecision
from foreserve.services.base import Service
from foreserve.services.joining import expect
from foreserve.services.scaling import ServiceScaling
from foreserve.services.served import Served, policy_name
from foreserve.settings import AppSettings, Environment, GraphSettings, ServiceSettings, UpstreamSettings

log = logging.getLogger(__name__)


class Wiring:
    """Makes services out of kinds, and has what all of them share: launchers, contexts, memory, the machine's room.

    `settled` hears every outcome, `scaled` every decision on a number of replicas. `only` starts all replicas in place
    of the launchers that the settings name.
    """

    def __init__(
        self,
        settings: AppSettings,
        ledger: Ledger,
        decisions: Journal | None,
        *,
        settled: Callable[[Outcome], None],
        scaled: Callable[[ScalingDecision], None],
        only: Launcher | None = None,
    ) -> None:
        self.services: dict[str, Service] = {}
        """Those that have been made, by name."""
        self.outside: dict[str, Outside] = {}
        """Who starts servers for those services whose replicas are servers, where their number follows the load."""
        on_ray = settings.cluster.on == "ray"
        self.contexts = _contexts(settings) if settings.runtime.fork and not on_ray else None
        """The processes out of which workers are forked, where they are."""
        self.memory = Memory(settings.runtime, Environment.read().cache)
        """Who holds read-only weights for all worker processes."""
        machine = settings.machine
        bounded = machine.replicas is not None or machine.memory_gb is not None
        self.shares = Shares(machine.replicas, machine.memory_gb) if bounded else None
        """Who divides this machine's room between services, where it has a bound."""
        self._ledger = ledger
        self._decisions = decisions
        self._settled = settled
        self._scaled = scaled
        self._only = only
        self._tapes: dict[str, Tape] = {}
        self._launchers: dict[str, Launcher] = {}
        self._ray = _ray(settings) if on_ray else None

    def wire(self, name: str, kind: Served) -> Service:
        """Everything that one service consists of; it starts nothing yet. Raises ConfigError for wrong options."""
        settings = kind.settings
        policy, placement, admission = self._deciders(name, kind, settings.policy_options)
        dispatcher = Dispatcher(
            name,
            policy,
            placement,
            admission,
            self._ledger,
            max_wait_s=settings.queue.max_wait_s,
            settled=self._settling(kind),
        )
        # Until the first replica is ready: refused and counted, not queued for what may never come.
        dispatcher.unavailable = f"the first replica of {name!r} is still starting"
        replicas = Replicas(
            name,
            kind.engines,
            self._launcher_of(settings),
            dispatcher,
            self._told(name, kind),
            least=self._least(settings),
            drain_s=settings.scaling.drain_s,
            in_order=isinstance(settings, UpstreamSettings),
            first_stays=isinstance(settings, GraphSettings),
        )
        dispatcher.retry_s = replicas.retry_s
        if hasattr(kind, "retry_s"):
            kind.retry_s = lambda: replicas.retry_s(asyncio.get_running_loop().time())
        outside = None
        if self._only is None and isinstance(settings, UpstreamSettings) and settings.scaled:
            outside = _outside(name, settings, replicas, lambda urls: expect(self.services[name], urls))
            self.outside[name] = outside
        service = Service(name, kind, settings, dispatcher, replicas, self._ledger, self._settled)
        service.scaling = self._scaling(name, kind, replicas, outside or replicas, dispatcher)
        self.services[name] = service
        return service

    def _scaling(
        self, name: str, kind: Served, replicas: Replicas, fleet: Fleet, dispatcher: Dispatcher
    ) -> ServiceScaling | None:
        """Who decides how many replicas there are, where that is left open."""
        settings = kind.settings
        least, most = settings.bounds
        shares = None if isinstance(settings, UpstreamSettings) else self.shares  # servers run elsewhere
        policy = make_scaling_policy(name, settings.scaling)  # also where nobody asks it: what is wrong is told
        if least == most or (isinstance(settings, UpstreamSettings) and not settings.scaled):
            if shares is not None:
                shares.hold(name, least)
            return None
        bounded = Bounded(ToZero(policy, settings.scaling.idle_s))
        return ServiceScaling(
            name, settings.scaling, (least, most), bounded, replicas, fleet, dispatcher, self._scaled, shares
        )

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
        if self._decisions is None:
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
        tape = self._tapes.setdefault(name, Tape(name, self._decisions))
        return recorded(tape, made, policy, placement, admission)

    def launcher(self, name: str) -> Launcher:
        """The one of this name; one for all services that name it."""
        if self._only is not None:
            return self._launchers.setdefault("", self._only)
        if name not in self._launchers:
            if name == "inline":
                self._launchers[name] = InlineLauncher()
            else:
                self._launchers[name] = self._ray or LocalLauncher(contexts=self.contexts, memory=self.memory)
        return self._launchers[name]

    def _launcher_of(self, settings: ServiceSettings) -> Launcher:
        launcher = self.launcher(settings.launcher)
        if isinstance(launcher, RayLauncher):
            ask = settings.ray
            return launcher.asking(Demand(cpus=ask.cpus, gpus=ask.gpus, resources=ask.resources))
        return launcher

    def _told(self, name: str, kind: Served) -> Callable[[EngineInfo], None]:
        def told(info: EngineInfo) -> None:
            before = policy_name(kind), kind.settings.policy_options
            self.services[name].info = info
            kind.ready(info)
            now = policy_name(kind), kind.settings.policy_options
            if now[0] != before[0]:  # `auto`, and the engine batches otherwise than its name told
                log.info("%s: its engine is %s, so policy %s orders it", name, info.batching, now[0])
            if now != before:  # or it has measured what its policy needs to know
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

    def forget(self, name: str) -> None:
        """It is served no more, and could not be started."""
        self.services.pop(name, None)
        self.outside.pop(name, None)

    async def close(self) -> None:
        """End what all services shared, once their replicas have ended."""
        for launcher in self._launchers.values():
            await launcher.close()
        if self.contexts is not None:
            await self.contexts.close()
        await self.memory.close()


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


def _ray(settings: AppSettings) -> RayLauncher:
    """Raises ConfigError where Ray is not installed."""
    cluster = settings.cluster
    return RayLauncher(Cluster(cluster.address, cluster.object_store_mb), settings.runtime, place_s=cluster.place_s)


def _contexts(settings: AppSettings) -> Contexts:
    state = settings.state
    kept = state_folder(state) / "imports.json" if state.history else None
    remembered = Remembered(kept) if settings.runtime.learn_imports else None
    return Contexts(settings.runtime.context_s, remembered=remembered)
