"""A service: one kind of work under one name, with its dispatcher and its replicas."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from foreserve.clock import now as clock_now
from foreserve.core import Chunk, Cost, EngineInfo, EngineLoad, Outcome, OutcomeKind, Price, Request, Work, add
from foreserve.dispatch.dispatcher import Dispatcher
from foreserve.dispatch.ledger import Ledger
from foreserve.dispatch.stream import Stream
from foreserve.fleet.replicas import Replicas
from foreserve.ports import Decoded, Kind
from foreserve.services.foreseeing import ForesightStatus
from foreserve.services.scaling import ScalingStatus, ServiceScaling
from foreserve.settings import ServiceSettings


class ReplicaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One replica, for people and metrics."""

    name: str
    state: str
    reason: str
    running: int
    capacity: dict[str, float]
    pid: int | None
    node: str | None = None
    url: str | None = None
    """Of the server that it is, where it is one."""
    load: EngineLoad | None = None
    since_s: float = 0.0
    """How long it has been in this state, in seconds."""


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service, for people and metrics."""

    name: str
    kind: str
    ready: bool
    replicas: list[ReplicaStatus]
    waiting: int
    running: int
    info: EngineInfo | None
    foresight: ForesightStatus | None = None
    wanted: int = 0
    """How many replicas there should be."""
    start_s: float = 0.0
    """How long one takes to start, in seconds: the median of late; 0 before any has."""
    scaling: ScalingStatus | None = None


class Watcher(Protocol):
    """Who hears of each request as it comes in, its payload with it; `Running.observers` hear how it ends."""

    def came(self, kind: Kind, request: Request, stream: Stream) -> None:
        """It is about to be taken in, or turned away."""
        ...

    def went_on(self, request_id: str) -> None:
        """It was not turned away after all: it will come with its payload, or never."""
        ...


class Service:
    """What the gateway talks to. Made by `app`, which wires its parts together."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        settings: ServiceSettings,
        dispatcher: Dispatcher,
        replicas: Replicas,
        ledger: Ledger,
        settled: Callable[[Outcome], None],
    ) -> None:
        self.name = name
        self.kind = kind
        self.settings = settings
        self.dispatcher = dispatcher
        self.replicas = replicas
        self.info: EngineInfo | None = None
        self.watcher: Watcher | None = None
        self.scaling: ServiceScaling | None = None
        """Where the number of replicas is left open."""
        self._ledger = ledger
        self._settled = settled

    def submit(self, request: Request) -> Stream:
        """Price a request and take it in. A request that is shed has ended already when this returns.

        Raises LedgerError when its id is that of an open request.
        """
        work = self._work(request, self.kind.price(request))
        stream = Stream(
            request.id,
            lambda: self.kind.decoder(work),
            bound=self.kind.events_bound(request.payload),
            stall_s=self.settings.stall_s,
            on_leave=self.dispatcher.leave,
        )
        if self.watcher is not None:
            self.watcher.came(self.kind, request, stream)
        if self.scaling is not None:
            self.scaling.came(work)
        self.dispatcher.submit(work, stream)
        return stream

    def feed(self, request_id: str, data: object, *, last: bool = False) -> None:
        """More of a request's input, where its kind takes such that still grow. Ended requests are ignored."""
        self.dispatcher.feed(request_id, data, last=last)

    def turn_away(self, request: Request) -> Outcome | None:
        """How a request has ended that would be refused whatever it costs; `None` when it may be submitted.

        Asked before the payload is made (`request.payload` is not looked at), so that refusing under overload costs
        little. What is turned away is in the ledger as any other.
        """
        work, stream = self._unpriced(request)
        return self._turned(work, stream, self.dispatcher.turn_away(work, stream))

    async def until_known(self, request: Request) -> Outcome | None:
        """Where no replica has ever been ready, wait for the first: only then is it known what may be asked.

        Returns how the request has ended when none could be had; `None` when it may go on. As of `turn_away`.
        """
        if self.info is not None:
            return None
        work, stream = self._unpriced(request)
        return self._turned(work, stream, await self.dispatcher.first(work, stream))

    def _unpriced(self, request: Request) -> tuple[Work, Stream]:
        """A request of which it is asked whether it may come at all."""
        stream = Stream(request.id, Unread, bound=1, stall_s=self.settings.stall_s, on_leave=self.dispatcher.leave)
        if self.watcher is not None:
            self.watcher.came(self.kind, request, stream)
        return self._work(request, Price(cost={})), stream

    def _turned(self, work: Work, stream: Stream, away: bool) -> Outcome | None:
        """How it has ended if it was turned away; `None` when it goes on."""
        if away:
            if self.scaling is not None:
                self.scaling.refused(work)
            return stream.outcome
        if self.watcher is not None:
            self.watcher.went_on(work.id)
        return None

    def _work(self, request: Request, price: Price) -> Work:
        return Work(
            id=request.id,
            payload=request.payload,
            cost=price.cost,
            forecast=price.forecast,
            ramp=price.ramp,
            prefix=price.prefix,
            plans=price.plans,
            arrival=request.arrival,
            deadline=request.deadline,
            utility=request.utility,
            tenant=request.tenant,
            parent=request.parent,
            root_arrival=request.root_arrival,
            affinity=request.affinity,
            depth=request.depth,
            after_s=request.after_s,
            idempotent=self.kind.idempotent if price.idempotent is None else price.idempotent,
        )

    def submit_group(self, request: Request, payloads: Sequence[object], abouts: Sequence[object]) -> Group:
        """Take in one root request that is served as several children, one for each payload (OpenAI's `n`).

        `abouts` has what is known of each, for `Request.about`.
        """
        self._ledger.enter(request.id)
        group = Group(request, len(payloads), self._root_ended)
        for index, (payload, about) in enumerate(zip(payloads, abouts, strict=True)):
            child = msgspec.structs.replace(
                request,
                id=f"{request.id}-{index}",
                payload=payload,
                about=about,
                parent=request.id,
                root_arrival=request.arrival,
            )
            group.add(self.submit(child))
        return group

    def _root_ended(self, outcome: Outcome) -> None:
        self._ledger.end(outcome)
        self._settled(outcome)

    @property
    def ready(self) -> bool:
        """Whether it takes work: some replica does, or one is started as soon as a request comes."""
        return bool(self.replicas.ready) or (self.replicas.on_demand and self.dispatcher.unavailable is None)

    def status(self) -> ServiceStatus:
        """A snapshot."""
        view, now = self.dispatcher.view(), clock_now()
        return ServiceStatus(
            name=self.name,
            kind=self.kind.name,
            ready=self.ready,
            replicas=[
                ReplicaStatus(
                    name=replica.name,
                    state=replica.state.value,
                    reason=replica.reason,
                    running=len(replica.held),
                    capacity=dict(replica.capacity()),
                    pid=replica.pid,
                    node=replica.node,
                    url=replica.info.facts.get("url") if replica.info else None,
                    load=replica.load,
                    since_s=now - replica.since,
                )
                for replica in self.replicas.all
            ],
            waiting=view.waiting,
            running=view.running,
            info=self.info,
            foresight=self.kind.foreseer.status() if hasattr(self.kind, "foreseer") else None,
            wanted=self.replicas.wanted,
            start_s=self.replicas.start_s,
            scaling=None if self.scaling is None else self.scaling.status(),
        )


class Unread:
    """The decoder of a request that never runs."""

    def feed(self, chunk: Chunk) -> Decoded:
        return Decoded()

    def usage(self) -> dict[str, float]:
        return {}


class Group:
    """A root request and its children: it ends when the last of them has, as the worst of them did.

    Its start and first chunk are the earliest of theirs, its usage their sum. What was foreseen is theirs alone.
    """

    WORST_FIRST = (
        OutcomeKind.FAILED,
        OutcomeKind.EXPIRED,
        OutcomeKind.SHED,
        OutcomeKind.CANCELLED,
        OutcomeKind.DONE,
    )

    def __init__(self, request: Request, size: int, settled: Callable[[Outcome], None]) -> None:
        self.id = request.id
        self.streams: list[Stream] = []
        self.outcome: Outcome | None = None
        self._size = size
        self._settled = settled
        self._ended: list[Outcome] = []

    def add(self, stream: Stream) -> None:
        """One more child."""
        self.streams.append(stream)
        stream.when_ended(self._child_ended)

    def close(self, reason: str = "the client went away") -> None:
        """Leave all of them."""
        for stream in self.streams:
            stream.close(reason)

    def _child_ended(self, outcome: Outcome) -> None:
        self._ended.append(outcome)
        if len(self._ended) == self._size:
            worst = min(self._ended, key=lambda o: self.WORST_FIRST.index(o.kind))
            usage: Cost = functools.reduce(add, (o.usage for o in self._ended))
            self.outcome = msgspec.structs.replace(
                worst,
                id=self.id,
                parent=None,
                forecast=None,
                beside=(),
                started=min((o.started for o in self._ended if o.started is not None), default=None),
                first=min((o.first for o in self._ended if o.first is not None), default=None),
                usage=dict(usage),
            )
            self._settled(self.outcome)
