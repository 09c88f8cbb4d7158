"""The waiting queue of one service and its loop: schedule, run, settle.

The queue is ours: a replica is given only what it can start. Nothing here knows what a request is about; costs are
compared, payloads and chunks are passed on.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foreserve.core import Chunk, Finish, Outcome, Work
from foreserve.dispatch import early
from foreserve.dispatch.cold import Cold, OnDemand
from foreserve.dispatch.flight import MOST_FED, Again, Flight, ended, why_again
from foreserve.dispatch.ledger import Ledger
from foreserve.dispatch.pace import Pace
from foreserve.dispatch.placing import Placing
from foreserve.dispatch.queue import Queue
from foreserve.dispatch.rooms import Runner
from foreserve.dispatch.stream import Stream
from foreserve.dispatch.waiting import summed
from foreserve.ports import Admission, Ahead, BatchPolicy, Pick, Placement, QueueView, Wait
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
        self.retry_s: Callable[[float], float] = lambda now: early.RETRY_S
        """By the loop's time: in how many seconds that may be otherwise."""
        self._policy = policy
        self._ahead = policy.ahead if isinstance(policy, Ahead) else None
        self._admission = admission
        self._ledger = ledger
        self._settled = settled
        self._runners: dict[str, Runner] = {}
        self._placing = Placing(placement)
        self._rooms = self._placing.rooms
        self.cold = Cold(self._rooms)
        """Of a service that may have no replica: whether it has none, and who is told that one is wanted."""
        self._pace = Pace()
        self._queue = Queue(self._pace, self.cold, max_wait_s=max_wait_s, overdue=self._overdue)
        self._waiting = self._queue.flights
        self._running: dict[str, Flight] = {}
        self._started = 0
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
        self._queue.turn_over(self._loop)
        if started:
            self._pace.started(started, len(self._waiting), now)

    def _run(self, pick: Pick, now: float) -> None:
        """Start what was picked on the replica that the placement names."""
        flights = [self._waiting[request_id] for request_id in pick.ids]
        works = [flight.work for flight in flights]
        room, cached = self._placing.room_for(works, pick.among, now)
        runner = self._runners[room.replica]
        for flight in flights:
            self._queue.remove(flight.work.id)
            self._running[flight.work.id] = flight
            flight.start(room, pick, self._started, now)
        self._started += len(flights)
        if cached:
            runner.run(works, pick.plan, cached)
        else:
            runner.run(works, pick.plan)
        for flight in flights:
            for data, last in flight.fed:
                runner.feed(flight.work.id, data, last)
        self._rooms.changed(room.replica)

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
        if retry and self._in_time(flight, now, why_again(finish)) and self._again(flight, now, why_again(finish)):
            return
        self._end(flight, ended(flight, finish, now))

    def _end(self, flight: Flight, outcome: Outcome) -> None:
        """Settle: the only place where a request ends."""
        self._queue.remove(outcome.id)
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
        return self._refused(flight, self._refusal(flight, self._loop.time()))

    async def first(self, work: Work, stream: Stream) -> bool:
        """Wait for the first replica of a service that may have none: until then nobody knows what may be asked of it.

        `work` has no payload and no cost yet. True when the request has ended instead: no replica could be had, or its
        deadline has passed. False, and nothing has happened, when it may be submitted.
        """
        flight = Flight(self.service, work, stream)
        limit_s = self._queue.most_wait_s
        until = self._loop.time() + limit_s
        until = until if work.deadline is None else min(until, work.deadline)
        while self.cold and self.unavailable is None and self._loop.time() < until:
            self.cold.want_one()
            await self.cold.anteroom.wait(until)
        refused = early.not_begun(flight, self.unavailable, limit_s, cold=bool(self.cold), now=self._loop.time())
        return self._refused(flight, refused)

    def _refused(self, flight: Flight, refused: Outcome | None) -> bool:
        """End a request that was never taken in, if it is refused."""
        if refused is None:
            return False
        self._ledger.enter(refused.id, child=refused.parent is not None)
        self._end(flight, refused)
        return True

    def _refusal(self, flight: Flight, now: float) -> Outcome | None:
        """The outcome of a request that is not taken in."""
        if self.unavailable is not None:
            return early.unavailable(flight, self.unavailable, now, self.retry_s(now))
        return early.refused(flight, self.view(flight.work), self._admission, now)

    def feed(self, request_id: str, data: Any, *, last: bool = False) -> None:
        """More of an input that is still growing: on to the replica, once it is there. Ended requests are ignored.

        One that grows beyond `flight.MOST_FED` parts ends as failed, and its engine's work with it.
        """
        flight = self._waiting.get(request_id) or self._running.get(request_id)
        if flight is None:
            return
        if len(flight.fed) >= MOST_FED:
            self._stop(flight, early.overfed(flight, MOST_FED, self._loop.time()))
            return
        flight.fed.append((data, last))
        runner = self._runners.get(flight.replica or "")
        if request_id in self._running and runner is not None:
            runner.feed(request_id, data, last)

    def leave(self, request_id: str, reason: str) -> None:
        """The caller wants no more of it. Unknown and ended requests are ignored."""
        flight = self._waiting.get(request_id) or self._running.get(request_id)
        if flight is not None:
            self._stop(flight, early.left(flight, reason, self._loop.time()))

    def _wait(self, flight: Flight, now: float) -> None:
        flight.queue(len(self._waiting), self._started, now)
        self._queue.add(flight)
        # First, so that the latest start is set in the coming turn even if the policy fails to take it.
        self.wake()
        self._policy.add(flight.work, now)
        self.cold.want_one()

    def _again(self, flight: Flight, now: float, why: Again) -> bool:
        """Queue a request once more whose attempt came to nothing, where that is safe."""
        if not flight.again(why):
            return False
        del self._running[flight.work.id]
        self._wait(flight, now)
        return True

    def _in_time(self, flight: Flight, now: float, why: Again) -> bool:
        """Servers that load are tried for as long as one may wait, however often; the rest is bounded by its number."""
        if why != "server loading":
            return True
        if flight.refused_since is None:
            flight.refused_since = now
        return now - flight.refused_since < self._queue.most_wait_s

    def _overdue(self, flight: Flight) -> None:
        now = self._loop.time()
        most_s, waited = self._queue.most_wait_s, self._queue.waited(flight, now)
        self._stop(flight, early.overdue(flight, most_s, waited, replicas=bool(self._rooms.slots), now=now))

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
        self._runners[runner.name] = runner
        self._rooms.attach(runner)
        self.unavailable = None
        self._turned()
        self.cold.anteroom.open()
        self.wake()

    def changed(self, runner: Runner) -> None:
        """What a replica has room for is another than before, and not by what we gave it or got back."""
        self._rooms.changed(runner.name)
        self.wake()

    def isolate(self, runner: Runner) -> None:
        """A replica is given nothing new. What it runs goes on, until it is attached again or gone."""
        self._rooms.detach(runner.name)
        self._turned()

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
        self._runners.pop(runner.name, None)
        self._rooms.detach(runner.name)
        self._turned()
        now = self._loop.time()
        for flight in [f for f in self._running.values() if f.replica == runner.name]:
            if not self._again(flight, now, "replica lost"):
                self._end(flight, early.lost(flight, runner.name, reason, now))

    def wait_for(self, fleet: OnDemand, wanted_one: Callable[[], None]) -> None:
        """There may be no replica from now on: requests wait until one of `fleet` is ready.

        `wanted_one` is called for the first, unless somebody else is already.
        """
        self.cold.allow(fleet, wanted_one)
        self.unavailable = None

    def _turned(self) -> None:
        """Judge who waits anew where the first replica has come or the last one gone."""
        if self.cold.turned(self._loop.time()):
            self._queue.judge_anew(self._loop)

    def give_up(self, reason: str) -> None:
        """No replica can be had for now: end what waits and refuse what comes, until one is attached."""
        self.unavailable = reason
        for flight in list(self._waiting.values()):
            self._stop(flight, early.unavailable(flight, reason, self._loop.time()))
        if self._alarm is not None:
            self._alarm.cancel()
        self.cold.anteroom.open()

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
        return self._queue.tenants

    def most_waiting(self) -> int:
        """The most that were left waiting by a turn since this was last asked. For statistics alone."""
        return self._queue.most(turn_to_come=self._turn is not None)

    def view(self, work: Work | None = None) -> QueueView:
        """Counts and pace, as admission sees them; `own`, `tenants` and `ahead` are those of `work`, which has come."""
        waiting = len(self._waiting)
        if self._turn is not None and waiting:
            # What has just come has not had its turn: it waits only as far as it finds no slot then.
            waiting = max(0, waiting - int(self._rooms.free_slots))
        waiting += len(self.cold.anteroom)
        own, tenants, ahead = None, 1, None
        if work is not None:
            own = self._queue.tenants.get(work.tenant, 0)
            tenants = len(self._queue.tenants) + (not own)
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
            cold_s=self.cold.ready_in(self._loop.time()),
        )

    def load(self, now: float) -> Waiting:
        """What waits, for scaling."""
        since = self._queue.since
        if since is None:
            return Waiting()
        works = (flight.work for flight in self._waiting.values())
        return summed(works, len(self._queue), now - since, self.view())

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
