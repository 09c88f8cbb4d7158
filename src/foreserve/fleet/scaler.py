"""Asks a service's scaling policy how many replicas there should be, and sees to it: the loop around the policies.

It runs on the running loop's clock, so that it is the same live and simulated.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from foreserve.clock import now as loop_now
from foreserve.clock import wall
from foreserve.core import Outcome
from foreserve.fleet.autoscaler_need import backlog
from foreserve.fleet.capacity import CapacityProfile
from foreserve.fleet.sharing import Claim, Granted, Shares
from foreserve.scaling import (
    LoadForecast,
    ReplicaView,
    Scale,
    ScalingDecision,
    ScalingPolicy,
    ScalingView,
    Waiting,
)
from foreserve.settings import ScalingSettings

log = logging.getLogger(__name__)

POKED_S: Final = 0.1
"""While a machine has no room every request that comes to none pokes: that is one look in so long, not one for each."""

A_LITTLE: Final = 0.05
"""Of a replica: what a service needs at the least of which something waits or runs."""


class Fleet(Protocol):
    """The replicas of one service, as far as scaling is concerned: `fleet.replicas.Replicas`."""

    @property
    def start_s(self) -> float:
        """How long a start takes, as measured; 0 before any."""
        ...

    def views(self, now: float) -> tuple[ReplicaView, ...]: ...
    def scale(self, wanted: int) -> None:
        """See to it that there are so many. Never blocks."""
        ...


class Queue(Protocol):
    """The service's dispatcher."""

    def load(self, now: float) -> Waiting: ...


class Load(Protocol):
    """What comes to the service: `services.workload.ServiceLoad`."""

    def forecast(self, horizon_s: float) -> LoadForecast | None: ...
    def recent(self, now: float) -> dict[str, float]: ...


class Scaler:
    """Of one service. `decided` hears its decisions: each that changes something, and at least one per window.

    `bounds` are the least and the most replicas. `shares` is the machine's, where several services share it.
    """

    def __init__(
        self,
        service: str,
        policy: ScalingPolicy,
        replicas: Fleet,
        dispatcher: Queue,
        load: Load,
        capacity: CapacityProfile,
        settings: ScalingSettings,
        decided: Callable[[ScalingDecision], None],
        shares: Shares | None = None,
        *,
        bounds: tuple[int, int],
    ) -> None:
        self.service = service
        self.capacity = capacity
        self.last: ScalingDecision | None = None
        """The newest decision."""
        self.seen: ScalingView | None = None
        """What it was made of."""
        self._policy = policy
        self._replicas = replicas
        self._dispatcher = dispatcher
        self._load = load
        self._settings = settings
        self._decided = decided
        self._shares = shares
        self._bounds = bounds
        self._task: asyncio.Task[None] | None = None
        self._poked: asyncio.Handle | None = None
        self._poked_at = float("-inf")
        self._busy_at = 0.0
        self._given_at = float("-inf")
        self._recorded_at = float("-inf")
        self._failed = ""
        if shares is not None:
            shares.enter(service, self._stands, self.poke)

    # --- it runs

    def start(self) -> None:
        """Begin. The first look is at once."""
        self._busy_at = loop_now()
        self._task = asyncio.create_task(self._run(), name=f"scaling of {self.service}")

    async def stop(self) -> None:
        """Decide no more. Idempotent."""
        if self._poked is not None:
            self._poked.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def poke(self) -> None:
        """Decide now: a request waits and there is no replica, or another service needs what we hold.

        In this turn of the loop, but for the pokes that come within `POKED_S` of one.
        """
        if self._poked is None and self._task is not None:
            loop = asyncio.get_running_loop()
            wait_s = self._poked_at + POKED_S - loop.time()
            self._poked = loop.call_later(wait_s, self._look_now) if wait_s > 0 else loop.call_soon(self._look_now)

    def ended(self, outcome: Outcome) -> None:
        """One more request has ended."""
        self._busy_at = loop_now()
        self.capacity.ended(outcome)

    async def _run(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(self._settings.every_s)

    def _look_now(self) -> None:
        self._poked, self._poked_at = None, loop_now()
        self._look()

    def _look(self) -> None:
        try:
            self.tick()
        except Exception:
            # The replicas there are go on serving, and the next look may go well.
            log.exception("the number of replicas of %s could not be looked at", self.service)

    # --- one decision

    def tick(self) -> ScalingDecision:
        """Look, decide and see to it."""
        now = loop_now()
        view = self.seen = self._view(now)
        scale = self._decide(view, now)
        granted = self._granted(view, scale, now)
        if granted.replicas > view.active:
            self._given_at = now
        self._replicas.scale(granted.replicas)
        decision = ScalingDecision(
            service=self.service,
            at=view.at,
            active=view.active,
            wanted=scale.wanted,
            granted=granted.replicas,
            why=scale.why,
            shared=granted.why,
            figures=scale.figures,
        )
        self._record(decision, now)
        return decision

    def _view(self, now: float) -> ScalingView:
        replicas, waiting = self._replicas.views(now), self._dispatcher.load(now)
        if waiting.count or any(replica.running for replica in replicas):
            self._busy_at = now
        self.capacity.looked(replicas, waiting, now)
        start_s = self._replicas.start_s
        forecast, recent = self._load.forecast(start_s + self._settings.every_s), self._load.recent(now)
        least, most = self._bounds
        return ScalingView(
            service=self.service,
            at=wall(),
            replicas=replicas,
            waiting=waiting,
            recent=recent,
            least=least,
            most=most,
            forecast=forecast,
            # Of the mix that is foreseen: what came of late may be two requests, and those of any size.
            capacity=self.capacity.at(forecast.expected if forecast and forecast.expected.get("requests") else recent),
            start_s=start_s,
            idle_s=now - self._busy_at,
        )

    def _decide(self, view: ScalingView, now: float) -> Scale:
        """What the policy says. One that fails holds what there is, and is logged when it fails in a new way."""
        try:
            scale = self._policy.decide(view, now)
            if not isinstance(scale.wanted, int) or scale.wanted < 0:
                raise ValueError(f"it wants {scale.wanted!r} replicas; it must be a whole number")
        except Exception as error:
            words = f"its scaling policy failed: {type(error).__name__}: {error}"
            if words != self._failed:
                log.exception("the scaling policy of %s failed; the replicas there are stay", self.service)
            self._failed = words
            some = min(1, view.waiting.count)  # who waits at none is served whatever is wrong with the policy
            return Scale(wanted=max(view.least, some, min(view.active, view.most)), why=words)
        self._failed = ""
        return scale

    def _granted(self, view: ScalingView, scale: Scale, now: float) -> Granted:
        if self._shares is None:
            return Granted(replicas=scale.wanted, share=scale.wanted)
        active, isolated, leaving = self._stands()
        claim = Claim(
            service=self.service,
            wanted=scale.wanted,
            need=needed(view, scale),
            least=view.least,
            active=active,
            isolated=isolated,
            leaving=leaving,
            waits_s=view.waiting.oldest_s if view.waiting.count else None,
            given_s=now - self._given_at,
            start_s=view.start_s,
        )
        return self._shares.ask(claim)

    def _stands(self) -> tuple[int, int, int]:
        """How many are active, can be taken back, and leave for good."""
        phases = [replica.phase for replica in self._replicas.views(loop_now())]
        isolated, draining = phases.count("isolated"), phases.count("draining")
        return len(phases) - isolated - draining, isolated, draining

    def _record(self, decision: ScalingDecision, now: float) -> None:
        last, self.last = self.last, decision
        told = (decision.wanted, decision.granted, decision.shared)
        same = last is not None and (last.wanted, last.granted, last.shared) == told
        # What was to change and has not yet is told once.
        lost = last is not None and last.granted == last.active and decision.granted != decision.active
        if same and not lost and now - self._recorded_at < self._settings.window_s:
            return
        self._recorded_at = now
        if decision.granted != decision.active:
            log.info("%s: %d -> %d replicas: %s", self.service, decision.active, decision.granted, decision.why)
        self._decided(decision)


def needed(view: ScalingView, scale: Scale) -> float:
    """What a service needs of a shared machine, in fractions of replicas: foreseen, running or waiting.

    Where a policy wants more than there is and than it tells as the figure `need`, all of that is needed.
    """
    told = scale.figures.get("need", 0.0)
    if scale.wanted > max(view.active, told):
        return float(scale.wanted)
    runs = sum(min(1.0, each.running / each.slots) for each in view.replicas if each.slots > 0)
    waiting = backlog(view) / max(view.start_s, 1.0)
    busy = view.waiting.count or any(each.running for each in view.replicas)
    return max(told, runs + waiting, A_LITTLE if busy else 0.0)
