"""What runs on this machine and what it shares, for people: services, workers, weights, contexts, memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from foreserve import clock
from foreserve.fleet.contexts import Contexts, ContextStats
from foreserve.fleet.memory import Memory, MemoryStats, ready_marks
from foreserve.fleet.replica import Replica, State
from foreserve.fleet.stages import Present, all_held, pays, stage
from foreserve.runtime.footprint import Footprint, footprint
from foreserve.runtime.leases import resolved
from foreserve.runtime.memory_messages import Held
from foreserve.services.base import Service

FRESH_S: Final = 1.0
"""How old an answer may be: reading what a process holds walks its page tables."""


class ServiceRuntime(msgspec.Struct, frozen=True, kw_only=True):
    """One service. `pays` is what its next request waits for; `return_s` medians of past returns by stage, in seconds.

    `references` counts who holds its weights, or is about to.
    """

    name: str
    kind: str
    stage: str
    ready: int
    references: int
    pays: tuple[str, ...]
    return_s: dict[str, float]


class WorkerRuntime(msgspec.Struct, frozen=True, kw_only=True):
    """One worker process; bytes as of `Footprint`, `None` where they are not told."""

    replica: str
    pid: int
    memory: Footprint | None


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Summed Pss in bytes of processes that are told of; `all_bytes` counts each process once."""

    workers_bytes: int
    contexts_bytes: int
    owner_bytes: int
    all_bytes: int


class RuntimeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot. `weights` is `None` while no memory owner runs; `hit_rate` while nothing was asked of it."""

    services: tuple[ServiceRuntime, ...]
    workers: tuple[WorkerRuntime, ...]
    weights: MemoryStats | None
    hit_rate: float | None
    contexts: tuple[ContextStats, ...]
    totals: Totals


class RuntimeView:
    """Looks when it is asked, at most once in `FRESH_S`: who asks sooner gets the last answer."""

    def __init__(self, services: Mapping[str, Service], memory: Memory, contexts: Contexts | None) -> None:
        self._services = services
        self._memory = memory
        self._contexts = contexts
        self._looking = asyncio.Lock()
        self._last: RuntimeStatus | None = None
        self._at = 0.0

    async def status(self) -> RuntimeStatus:
        """A snapshot of now, or of at most `FRESH_S` ago."""
        async with self._looking:
            if self._last is None or clock.now() - self._at >= FRESH_S:
                self._last = await self._look()
                self._at = clock.now()
            return self._last

    async def _look(self) -> RuntimeStatus:
        pids = {
            replica.name: replica.pid
            for service in self._services.values()
            for replica in service.replicas.all
            if replica.pid is not None and replica.state is not State.GONE
        }
        footprints = await clock.offload(lambda: [footprint(pid) for pid in pids.values()])
        workers = tuple(
            WorkerRuntime(replica=name, pid=pid, memory=memory)
            for (name, pid), memory in zip(pids.items(), footprints, strict=True)
        )
        weights = await self._memory.stats()
        contexts = () if self._contexts is None else await self._contexts.stats()
        asked = 0 if weights is None else weights.hits + weights.misses
        return RuntimeStatus(
            services=tuple(
                self._service(one, () if weights is None else weights.entries) for one in self._services.values()
            ),
            workers=workers,
            weights=weights,
            hit_rate=weights.hits / asked if weights is not None and asked else None,
            contexts=contexts,
            totals=_totals(workers, weights, contexts),
        )

    def _service(self, service: Service, entries: tuple[Held, ...]) -> ServiceRuntime:
        replicas = service.replicas
        spec = replicas.spec
        refs = [] if spec is None else [resolved(ref) for ref in spec.weights]
        placed = [ref for ref in refs if ref.device is not None]
        up = spec is not None and self._contexts is not None and self._contexts.up(spec)
        present = Present(
            workers=sum(one.state is not State.GONE for one in replicas.all),
            wants=bool(refs),
            weights=all_held(refs, ready_marks(entries)),
            context=up,
            # Without declared weights, what rests is an engine by its own means, of which there is one copy.
            copies=not _all_rest(replicas.ready)
            or (bool(placed) and all_held(placed, ready_marks(entries, on_device=True))),
        )
        own = [one for one in entries if one.device is None and any(all_held([ref], one.marks) for ref in refs)]
        return ServiceRuntime(
            name=service.name,
            kind=service.kind.name,
            stage=stage(present).value,
            ready=len(replicas.ready),
            references=sum(one.references for one in own),
            pays=pays(present),
            return_s={origin.value: seconds for origin, seconds in replicas.returns.medians().items()},
        )


def _all_rest(ready: Sequence[Replica]) -> bool:
    """Whether there are some and all have let go of their weights on a device."""
    return bool(ready) and all(replica.rests for replica in ready)


def _totals(
    workers: tuple[WorkerRuntime, ...], weights: MemoryStats | None, contexts: tuple[ContextStats, ...]
) -> Totals:
    by_pid = {one.pid: one.memory.pss for one in workers if one.memory is not None}  # inline ones are one process
    imported = sum(one.pss_bytes or 0 for one in contexts)
    owner = weights.memory.pss if weights is not None and weights.memory is not None else 0
    own = sum(by_pid.values())
    return Totals(workers_bytes=own, contexts_bytes=imported, owner_bytes=owner, all_bytes=own + imported + owner)
