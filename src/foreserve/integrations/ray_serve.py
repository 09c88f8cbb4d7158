"""Foreserve's placement as a request router of Ray Serve, set by configuration alone; see docs/cluster.md.

```python
RequestRouterConfig(
    request_router_class="foreserve.integrations.ray_serve:AnticipatedRouter",
    request_router_kwargs={"kv_tokens": 200_000},
)
```

Serve waits for ever for a router that raises and spins on one that returns nothing, so this one does neither, whatever
its policy does: then the choice is Serve's own.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray.serve.request_router import (
    PendingRequest,
    ReplicaID,
    ReplicaResult,
    RequestRouter,
    RunningReplica,
)

from foreserve.chosen import make_placement
from foreserve.integrations.faults import Faults
from foreserve.integrations.ray_serve_bookings import Bookings
from foreserve.integrations.ray_serve_scaling import ForecastPolicy

__all__ = ["AnticipatedRouter", "ForecastPolicy"]

log = logging.getLogger(__name__)


class AnticipatedRouter(RequestRouter):  # type: ignore[misc]
    """Places by predicted and anticipated load, as far as this handle's own requests tell of it.

    Its settings are those of `Bookings` and `placement`, a placement by name. Wrong ones are logged, and Serve's own
    choice is taken.
    """

    bookings: Bookings | None = None
    faults: Faults

    def initialize_state(self, placement: str = "anticipated_even", **options: Any) -> None:
        """See `RequestRouter`; called once, before any request."""
        self.faults = Faults(log, "the router's policy")
        try:
            self.bookings = Bookings(make_placement("request_router_kwargs", placement), **options)
        except Exception as error:
            self.bookings = None
            log.error("request_router_kwargs are wrong, so Ray Serve's own choice is taken: %s", error)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One replica a rank, ours first, then a rank of all."""
        if pending_request is not None:
            # Without it a deployment whose replicas are all full is asked as fast as the loop turns.
            pending_request.routing_context.should_backoff = True
        ours: list[list[RunningReplica]] = []
        if self.bookings is not None and pending_request is not None:
            try:
                ours = self._ours(self.bookings, candidate_replicas, pending_request)
            except Exception:
                self.faults.note()
        return [*ours, list(candidate_replicas)]

    def _ours(
        self, bookings: Bookings, candidates: list[RunningReplica], request: PendingRequest
    ) -> list[list[RunningReplica]]:
        by_name = {replica.replica_id.unique_id: replica for replica in candidates}
        now = _now()
        work = bookings.priced(request.metadata.internal_request_id, request.args, request.kwargs, now)
        slots = {name: int(replica.max_ongoing_requests) for name, replica in by_name.items()}
        wanted = bookings.order(work, slots, now)
        return [[by_name[name]] for name in dict.fromkeys(wanted) if name in by_name]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """Book it."""
        super().on_request_routed(pending_request, replica_id, result)
        if self.bookings is not None:
            with self.faults:
                self.bookings.routed(pending_request.metadata.internal_request_id, replica_id.unique_id, _now())

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Strike it off: a stream at its end, not at its first item."""
        super().on_request_completed(replica_id, internal_request_id)
        if self.bookings is not None:
            with self.faults:
                self.bookings.completed(internal_request_id, _now())

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Strike off all that it had."""
        super().on_replica_actor_died(replica_id)
        if self.bookings is not None:
            with self.faults:
                self.bookings.lost(replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Forget those that have gone."""
        super().update_replicas(replicas)
        if self.bookings is not None:
            with self.faults:
                self.bookings.only([replica.replica_id.unique_id for replica in replicas])


def _now() -> float:
    return asyncio.get_event_loop().time()
