"""The waiting queue of one service and its loop: schedule, run, settle.

The queue is ours: a replica is given only what it can start. Nothing here knows what a request is about; costs are
compared, payloads and chunks are passed on.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence

from foreserve.core import Chunk, Finish, Outcome, Work
from foreserve.dispatch import early
from foreserve.dispatch.cold import Anteroom, OnDemand
from foreserve.dispatch.flight import Again, Flight, ended
from foreserve.dispatch.ledger import Ledger
from foreserve.dispatch.pace import Pace
from foreserve.dispatch.rooms import Rooms, Runner
from foreserve.dispatch.stream import Stream
from foreserve.dispatch.waiting import summed
from foreserve.ports import (
    Admission,
    Ahead,
    BatchPolicy,
    HearsRanks,
    Pick,
    Placement,
    QueueView,
    Room,
    Shortlisted,
    Wait,
    ranked,
)
from foreserve.scaling import Waiting

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""When policies are asked again after one of them has failed, or had no use for the room there is."""


class Dispatcher:
    """Orders, places and ends the requests of one service. All its methods are called on the event loop.

    `max_wait_s` bounds the time in the queue, whatever was predicted. `settled` hears every outcome, once.
    """

    def __init__(
        self,
        service: str,
        policy: BatchPolicy,
        placement: Placement,
        admission: Admission,
        ledger: Ledger,
        *,
        max_wait_s: float,
        settled: Callable[[Outcome], None],
    ) -> None:
        self.service = service
        self.unavailable: str | None = None
        """Why nothing can be served, in words: before the first replica is ready, and while the fleet has given up."""
        self.wanted_one: Callable[[], None] | None = None
        """Called when a request comes to wait where there may be no replica, and none is there or about to be."""
        self._on_demand: OnDemand | None = None
        self._anteroom = Anteroom()
        self._since = -math.inf
        """When the present replicas, or the present time without any, began. Of services on demand alone."""
        self._policy = policy
        self._ahead = policy.ahead if isinstance(policy, Ahead) else None
        self._placement = placement
        self._admission = admission
        self._ledger = ledger
        self._max_wait_s = max_wait_s
        self._settled = settled
        self._runners: dict[str, Runner] = {}
        by_rank = ranked(placement)
        self._ranked = by_rank is not None
        self._heard_rank = by_rank.chosen if isinstance(by_rank, HearsRanks) else None
        self._listed = placement if by_rank is None and isinstance(placement, Shortlisted) else None
        in_order = by_rank or self._listed
        self._rooms = Rooms(None if in_order is None else in_order.rank)
        self._waiting: dict[str, Flight] = {}
        self._running: dict[str, Flight] = {}
        self._by_tenant: dict[str, int] = {}
        """How many wait, of those tenants of which any do."""
        self._pace = Pace()
        self._started = 0
        self._most_waiting = 0
        self._came: list[Flight] = []
        """Those that have joined the queue since its last turn."""
        self._turn: asyncio.Handle | None = None
        self._alarm: asyncio.TimerHandle | None = None

    # --- the loop

    def _schedule(self) -> None:
        """Give the replicas what they have room for, then sleep until something changes."""
        self._turn = None
        now = self._loop.time()
        started = 0
        try:
            while self._waiting and self._rooms:
                match self._policy.pick(self._rooms.show(), now):
                    case Pick() as pick:
                        self._run(pick, now)
                        started += len(pick.ids)
                    case Wait(until=until):
                        self._wake_at(until)
                        break
                    case None:
                        # Room that is foreseen comes with time alone, and a replica may be silent meanwhile.
                        self._wake_at(now + AGAIN_S)
                        break
        except Exception:
            log.exception("the policies of %s failed; they are asked again in %g s", self.service, AGAIN_S)
            self._wake_at(now + AGAIN_S)
        self._rooms.hide()
        self._most_waiting = max(self._most_waiting, len(self._waiting))
        self._set_latest_starts()
        if started:
            self._pace.started(started, len(self._waiting), now)

    def _run(self, pick: Pick, now: float) -> None:
        """Start what was picked on the replica that the placement names."""
        flights = [self._waiting[request_id] for request_id in pick.ids]
        works = [flight.work for flight in flights]
        room, cached = self._room_for(works, pick.among, now)
        runner = self._runners[room.replica]
        for flight in flights:
            self._unqueue(flight.work.id)
            self._running[flight.work.id] = flight
            flight.start(room, pick, self._started, now)
        self._started += len(flights)
        if cached:
            runner.run(works, pick.plan, cached)
        else:
            runner.run(works, pick.plan)
        self._rooms.changed(room.replica)

    def _room_for(self, works: Sequence[Work], among: Sequence[str], now: float) -> tuple[Room, int]:
        """Where these run, and how many tokens of their prompts are cached there.

        Raises LookupError when they fit nowhere: the policy has picked what it must not.
        """
        if self._ranked:
            room = self._rooms.first(works, among)
            if room is None:
                raise LookupError(f"{', '.join(work.id for work in works)} picked, and no replica has room")
            if self._heard_rank is not None:
                self._heard_rank(works, room.replica, now)
            return room, 0
        if self._listed is not None:
            near = self._listed.near(works)
            listed = self._rooms.shortlist(works, among, self._listed.shortlist, near)
            if not listed:
                raise LookupError(f"{', '.join(work.id for work in works)} picked, and no replica has room")
            replica = self._listed.place(works, listed, now)
            room = next(room for room in listed if room.replica == replica)
            return room, self._listed.chosen(works, replica, now)
        rooms = (room for room in self._rooms if not among or room.replica in among)
        fitting = {room.replica: room for room in rooms if room.takes(works)}
        return fitting[self._placement.place(works, list(fitting.values()), now)], 0

    def _set_latest_starts(self) -> None:
        """Of those that came and were not started in the same turn, as most are."""
        for flight in self._came:
            if self._waiting.get(flight.work.id) is flight:
                flight.wait(self._loop, self._overdue)
        self._came.clear()

    def chunks(self, runner: Runner, chunks: Sequence[Chunk]) -> None:
        """What one step of a replica produced. Late and repeated chunks are dropped: each is known by its numbers."""
        now = self._loop.time()
        freed, begun = False, False
        for chunk in chunks:
            freed = freed or chunk.finish is not None
            begun = begun or not chunk.index
            flight = self._running.get(chunk.id)
            if flight is None or not flight.expects(runner.name, chunk):
                continue
            try:
                enough = flight.accept(chunk, now)
            except Exception as error:
                # Of one request alone: the others of this step go on.
                log.exception("the answer to %s cannot be read", chunk.id)
                self._stop(flight, early.unreadable(flight, error, now))
                continue
            if self._running.get(chunk.id) is not flight:
                continue  # its reader left over this very chunk
            if enough:
                self._end(flight, ended(flight, Finish(reason="stop"), now))
                runner.abort([chunk.id])
            elif chunk.finish is not None:
                self._finish(flight, chunk.finish, now)
        if freed:
            self._rooms.changed(runner.name)
            self.wake()
        elif begun:
            self._rooms.changed(runner.name)

    def _finish(self, flight: Flight, finish: Finish, now: float) -> None:
        """The engine is done with a request, one way or the other."""
        retry = finish.detail.get("retry") if isinstance(finish.detail, dict) else None
        if retry and self._again(flight, now, _why(finish)):
            return
        self._end(flight, ended(flight, finish, now))

    def _end(self, flight: Flight, outcome: Outcome) -> None:
        """Settle: the only place where a request ends."""
        self._unqueue(outcome.id)
        self._running.pop(outcome.id, None)
        flight.disarm()
        self._pace.settled(outcome, flight.predicted_s)
        self._ledger.end(outcome)
        try:
            if flight.queued:
                self._policy.settled(outcome)
            self._settled(outcome)
        except Exception:
            # Who only listens may fail; the caller hears of the end all the same.
            log.exception("the end of %s was not taken note of", outcome.id)
        flight.stream.end(outcome)

    # --- requests come and go

    def submit(self, work: Work, stream: Stream) -> None:
        """Take a request in, or end it at once as shed. Its stream tells which."""
        now = self._loop.time()
        self._ledger.enter(work.id, child=work.parent is not None)
        flight = Flight(self.service, work, stream)
        refused = self._refusal(flight, now)
        if refused is not None:
            return self._end(flight, refused)
        self._wait(flight, now)
        flight.expire(self._loop, self._expired)
        return None

    def turn_away(self, work: Work, stream: Stream) -> bool:
        """End a request that would be refused whatever it costs, before anybody works out what it does.

        `work` has no payload and no cost yet. False, and nothing has happened, when it may be submitted.
        """
        flight = Flight(self.service, work, stream)
        refused = self._refusal(flight, self._loop.time())
        if refused is None:
            return False
        self._ledger.enter(work.id, child=work.parent is not None)
        self._end(flight, refused)
        return True

    async def first(self, work: Work, stream: Stream) -> bool:
        """Wait for the first replica of a service that may have none: until then nobody knows what may be asked of it.

        `work` has no payload and no cost yet. True when the request has ended instead: no replica could be had, or its
        deadline has passed. False, and nothing has happened, when it may be submitted.
        """
        flight = Flight(self.service, work, stream)
        limit_s = self._most_wait_s
        until = self._loop.time() + limit_s
        until = until if work.deadline is None else min(until, work.deadline)
        while self._cold and self.unavailable is None and self._loop.time() < until:
            self._want_one()
            await self._anteroom.wait(until)
        now = self._loop.time()
        if self.unavailable is not None:
            refused = early.unavailable(flight, self.unavailable, now)
        elif work.deadline is not None and now >= work.deadline:
            refused = early.expired(flight, waiting=True, now=now)
        elif self._cold:
            refused = early.unavailable(flight, f"no replica was ready for {limit_s:g} s", now)
        else:
            return False
        self._ledger.enter(work.id, child=work.parent is not None)
        self._end(flight, refused)
        return True

    def _refusal(self, flight: Flight, now: float) -> Outcome | None:
        """The outcome of a request that is not taken in."""
        if self.unavailable is not None:
            return early.unavailable(flight, self.unavailable, now)
        return early.refused(flight, self.view(flight.work), self._admission, now)

    def leave(self, request_id: str, reason: str) -> None:
        """The caller wants no more of it. Unknown and ended requests are ignored."""
        flight = self._waiting.get(request_id) or self._running.get(request_id)
        if flight is not None:
            self._stop(flight, early.left(flight, reason, self._loop.time()))

    def _wait(self, flight: Flight, now: float) -> None:
        flight.queue(len(self._waiting), self._started, now)
        self._waiting[flight.work.id] = flight
        self._by_tenant[flight.work.tenant] = self._by_tenant.get(flight.work.tenant, 0) + 1
        self._set_latest_start(flight)
        self._came.append(flight)
        # First, so that the latest start is set in the coming turn even if the policy fails to take it.
        self.wake()
        self._policy.add(flight.work, now)
        self._want_one()

    def _want_one(self) -> None:
        """See that a replica comes, of a service that has none."""
        cold = self._on_demand if self._cold else None
        if cold is not None and self.wanted_one is not None and not cold.coming():
            self.wanted_one()

    def _set_latest_start(self, flight: Flight) -> None:
        """Where there may be no replica, the time without one and the time with one are judged apart, and together."""
        latest_start = max(flight.waits_since, self._since) + self._most_wait_s
        if self._on_demand is not None:
            latest_start = min(latest_start, flight.waits_since + self._on_demand.limit_s + self._max_wait_s)
        if flight.work.deadline is not None:
            latest_start = min(latest_start, flight.work.deadline - self._pace.least_service(flight.work.forecast))
        flight.latest_start = latest_start

    @property
    def _cold(self) -> bool:
        """Whether there is no replica, of a service that may have none."""
        return self._on_demand is not None and not self._rooms.slots

    @property
    def _most_wait_s(self) -> float:
        return self._on_demand.limit_s if self._on_demand is not None and self._cold else self._max_wait_s

    def _unqueue(self, request_id: str) -> None:
        """It waits no more, if it did."""
        flight = self._waiting.pop(request_id, None)
        if flight is None:
            return
        tenant = flight.work.tenant
        self._by_tenant[tenant] -= 1
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]

    def _again(self, flight: Flight, now: float, why: Again) -> bool:
        """Queue a request once more whose attempt came to nothing, where that is safe."""
        if not flight.again(why):
            return False
        del self._running[flight.work.id]
        self._wait(flight, now)
        return True

    def _overdue(self, flight: Flight) -> None:
        now = self._loop.time()
        waited = now - max(flight.waits_since, self._since)
        self._stop(flight, early.overdue(flight, self._most_wait_s, waited, replicas=bool(self._rooms.slots), now=now))

    def _expired(self, flight: Flight) -> None:
        waiting = flight.work.id in self._waiting
        self._stop(flight, early.expired(flight, waiting=waiting, now=self._loop.time()))

    def _stop(self, flight: Flight, outcome: Outcome) -> None:
        """End a request before its engine does; its replica hears of it and frees the room once it has stopped."""
        self._policy.remove(outcome.id)
        runner = self._runners.get(flight.replica or "")
        if outcome.id in self._running and runner is not None:
            runner.abort([outcome.id])
        self._end(flight, outcome)

    def adopt(self, policy: BatchPolicy, admission: Admission) -> None:
        """Order and admit by these from now on; what waits already is ordered anew."""
        self._policy = policy
        self._ahead = policy.ahead if isinstance(policy, Ahead) else None
        self._admission = admission
        for flight in self._waiting.values():
            policy.add(flight.work, self._loop.time())
        self.wake()

    # --- replicas come and go

    def attach(self, runner: Runner) -> None:
        """A replica is ready, or takes work again."""
        was_cold = self._cold
        self._runners[runner.name] = runner
        self._rooms.attach(runner)
        self.unavailable = None
        self._turned(was_cold)
        self._anteroom.open()
        self.wake()

    def changed(self, runner: Runner) -> None:
        """What a replica has room for is another than before, and not by what we gave it or got back."""
        self._rooms.changed(runner.name)
        self.wake()

    def isolate(self, runner: Runner) -> None:
        """A replica is given nothing new. What it runs goes on, until it is attached again or gone."""
        was_cold = self._cold
        self._rooms.detach(runner.name)
        self._turned(was_cold)

    def move(self, runner: Runner) -> bool:
        """Let one request of an isolated replica go on elsewhere, where others have room for it at once.

        False when none could: who has a deadline stays, for it ends by then, and nobody is moved into a queue.
        """
        if self._waiting:
            return False
        now = self._loop.time()
        for flight in [f for f in self._running.values() if f.replica == runner.name and f.work.deadline is None]:
            has_room = any(room.takes([flight.work]) for room in self._rooms)
            if has_room and self._again(flight, now, "replica left"):
                runner.abort([flight.work.id])
                return True
        return False

    def detach(self, runner: Runner, reason: str) -> None:
        """A replica is gone. What it still ran goes on or is run again elsewhere once, or ends as failed."""
        was_cold = self._cold
        self._runners.pop(runner.name, None)
        self._rooms.detach(runner.name)
        self._turned(was_cold)
        now = self._loop.time()
        for flight in [f for f in self._running.values() if f.replica == runner.name]:
            if not self._again(flight, now, "replica lost"):
                self._end(flight, early.lost(flight, runner.name, reason, now))

    def wait_for(self, fleet: OnDemand, wanted_one: Callable[[], None]) -> None:
        """There may be no replica from now on: requests wait until one of `fleet` is ready.

        `wanted_one` is called for the first, unless somebody else is already.
        """
        self._on_demand = fleet
        self.wanted_one = self.wanted_one or wanted_one
        self.unavailable = None

    def _turned(self, was_cold: bool) -> None:
        """The first replica has come or the last one gone: who waits is judged anew from now."""
        if self._on_demand is None or was_cold == self._cold:
            return
        self._since = self._loop.time()
        for flight in self._waiting.values():
            self._set_latest_start(flight)
            flight.wait(self._loop, self._overdue)

    def give_up(self, reason: str) -> None:
        """No replica can be had for now: end what waits and refuse what comes, until one is attached."""
        self.unavailable = reason
        for flight in list(self._waiting.values()):
            self._stop(flight, early.unavailable(flight, reason, self._loop.time()))
        if self._alarm is not None:
            self._alarm.cancel()
        self._anteroom.open()

    # --- what is known

    @property
    def policy(self) -> BatchPolicy:
        """That which orders now."""
        return self._policy

    @property
    def waiting(self) -> Mapping[str, Flight]:
        """Those in the queue, by id, in the order in which they joined it."""
        return self._waiting

    @property
    def running(self) -> Mapping[str, Flight]:
        """Those that were given to a replica and have not ended, by id."""
        return self._running

    @property
    def tenants_waiting(self) -> Mapping[str, int]:
        """How many wait of each tenant, of those of which any do."""
        return self._by_tenant

    def most_waiting(self) -> int:
        """The most that were left waiting by a turn since this was last asked. For statistics alone."""
        most = self._most_waiting
        self._most_waiting = len(self._waiting) if self._turn is None else 0  # a turn to come will tell
        return most

    def view(self, work: Work | None = None) -> QueueView:
        """Counts and pace, as admission sees them; `own`, `tenants` and `ahead` are those of `work`, which has come."""
        waiting = len(self._waiting)
        if self._turn is not None and waiting:
            # What has just come has not had its turn: it waits only as far as it finds no slot then.
            waiting = max(0, waiting - int(self._rooms.free_slots))
        waiting += len(self._anteroom)
        own, tenants, ahead = None, 1, None
        if work is not None:
            own = self._by_tenant.get(work.tenant, 0)
            tenants = len(self._by_tenant) + (not own)
            if waiting and self._ahead is not None:
                ahead = self._ahead(work, self._loop.time())
        return QueueView(
            waiting=waiting,
            running=len(self._running),
            slots=self._rooms.slots,
            seconds_per_request=self._pace.service.value,
            least_seconds=self._pace.least_service(),
            stretch=self._pace.stretch(),
            seconds_between_starts=self._pace.interval.value,
            ahead=ahead,
            own=own,
            tenants=tenants,
            cold_s=self._on_demand.ready_in(self._loop.time()) if self._cold and self._on_demand else 0.0,
        )

    def load(self, now: float) -> Waiting:
        """What waits, for scaling."""
        first = next(iter(self._waiting.values()), None)
        since = [at for at in (self._anteroom.since, None if first is None else first.waits_since) if at is not None]
        if not since:
            return Waiting()
        works = (flight.work for flight in self._waiting.values())
        return summed(works, len(self._waiting) + len(self._anteroom), now - min(since), self.view())

    def wake(self) -> None:
        """Look again in this turn of the loop, if anything waits; many calls make one look."""
        if self._turn is None and self._waiting:
            self._turn = self._loop.call_soon(self._schedule)

    def _wake_at(self, until: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(until, self.wake)

    @functools.cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()


def _why(finish: Finish) -> Again:
    """Why an engine wants a request to be tried once more."""
    if finish.detail["retry"] == "memory":
        return "out of memory"
    return "server full" if "status" in finish.detail else "broken off"
