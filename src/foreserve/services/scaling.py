"""How the number of one service's replicas follows its load: what comes, what one replica can do, and who decides."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from typing import Final

import msgspec

from foreserve.clock import offload, wall
from foreserve.core import Outcome, Work
from foreserve.dispatch.dispatcher import Dispatcher
from foreserve.fleet.capacity import CapacityProfile, CapacityState
from foreserve.fleet.replicas import Replicas
from foreserve.fleet.scaler import Fleet, Scaler
from foreserve.fleet.sharing import Shares
from foreserve.loads import LoadStore
from foreserve.scaling import ScalingDecision, ScalingPolicy
from foreserve.services.workload import ServiceLoad, WorkloadStatus
from foreserve.settings import ScalingSettings

log = logging.getLogger(__name__)

CAPACITY: Final = "capacity"
"""Under which name in the store what a replica can do is noted."""


class ScalingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """For people and metrics: the newest decision, and what is known of the load.

    `forecast` is what it expected for each second, by measure, of the time when a replica would be up that was asked
    for then; `predicted_wait_s` how long one that came then would have waited, `None` where nothing told.
    """

    least: int
    most: int
    decision: ScalingDecision | None
    capacity: dict[str, float]
    capacity_why: str
    load: WorkloadStatus
    forecast: dict[str, float] = {}
    predicted_wait_s: float | None = None


class ServiceScaling:
    """Of one service whose number of replicas is left open. Made by `app`, which tells it what comes and ends."""

    def __init__(
        self,
        name: str,
        settings: ScalingSettings,
        bounds: tuple[int, int],
        policy: ScalingPolicy,
        replicas: Replicas,
        fleet: Fleet,
        dispatcher: Dispatcher,
        decided: Callable[[ScalingDecision], None],
        shares: Shares | None,
    ) -> None:
        """`fleet` is who is told the number: `replicas`, or who stands in for them."""
        self.name = name
        self.load = ServiceLoad(name, settings)
        self._settings = settings
        self._bounds = bounds
        self._policy = policy
        self._replicas = replicas
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._decided = decided
        self._shares = shares
        self._store: LoadStore | None = None
        self._noted = b""
        self.scaler = self._made(CapacityProfile())

    def _made(self, capacity: CapacityProfile) -> Scaler:
        return Scaler(
            self.name,
            self._policy,
            self._fleet,
            self._dispatcher,
            self.load,
            capacity,
            self._settings,
            self._hear,
            self._shares,
            bounds=self._bounds,
        )

    # --- it starts and ends

    async def prepare(self, store: LoadStore | None) -> None:
        """Take up what was learned before; from now on what comes is counted."""
        await self.load.start(store)
        if store is None:
            return
        try:
            if (noted := await offload(lambda: store.noted(self.name, CAPACITY))) is not None:
                self.scaler = self._made(CapacityProfile.restored(msgspec.json.decode(noted, type=CapacityState)))
                self._noted = noted
        except (sqlite3.Error, msgspec.DecodeError) as error:
            log.warning("%s: what one replica can do cannot be read; it is learned anew: %s", self.name, error)
        self._store = store

    def start(self) -> None:
        """Decide from now on: the replicas have been started."""
        # In place of what the fleet does by itself, which would not ask whether the machine has room.
        self._dispatcher.cold.wanted_one = self.scaler.poke
        self.scaler.start()

    async def stop(self) -> None:
        """Decide no more, and note down what was learned. Idempotent."""
        await self.scaler.stop()
        await self.load.stop()
        self._note()
        self._store = None

    def _hear(self, decision: ScalingDecision) -> None:
        """At least once per window: so what was learned outlives a server that is killed."""
        self._note()
        self._decided(decision)

    def _note(self) -> None:
        if self._store is not None and (state := msgspec.json.encode(self.scaler.capacity.state())) != self._noted:
            self._store.note(self.name, CAPACITY, state)
            self._noted = state

    # --- what it is told

    def came(self, work: Work) -> None:
        """A request has come, and is about to be submitted."""
        self.load.came(work, wall())

    def refused(self, work: Work) -> None:
        """One has come that was never submitted, and has ended."""
        self.load.refused(work, wall())

    def settled(self, outcome: Outcome) -> None:
        """One has ended."""
        self.load.settled(outcome)
        self.scaler.ended(outcome)

    def status(self) -> ScalingStatus:
        """A snapshot."""
        capacity = self.scaler.capacity.at(self.load.recent(0.0))
        seen = self.scaler.seen
        told = None if seen is None else seen.forecast
        return ScalingStatus(
            least=self._bounds[0],
            most=self._bounds[1],
            decision=self.scaler.last,
            capacity={} if capacity is None else capacity.per_s,
            capacity_why="" if capacity is None else capacity.why,
            load=self.load.status(),
            forecast={} if told is None else {name: each / told.window_s for name, each in told.expected.items()},
            predicted_wait_s=None if seen is None else seen.waiting.predicted_wait_s,
        )
