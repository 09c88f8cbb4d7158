"""The replicas of one service: keeps the wanted number alive, while that number changes."""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from foreserve.core import EngineInfo, EngineSpec
from foreserve.dispatch.dispatcher import Dispatcher
from foreserve.errors import EngineStartError
from foreserve.fleet.replica import Replica, State
from foreserve.fleet.seats import Seat, first_to_leave, first_to_take
from foreserve.fleet.stages import Returns, Stage, stage
from foreserve.fleet.watch import LOOKS
from foreserve.messages import Chunks
from foreserve.ports import Launcher
from foreserve.registry import choices
from foreserve.scaling import ReplicaView

log = logging.getLogger(__name__)

DRAIN_S: Final = 300.0
"""How long a replica that is wanted no more may take to finish what it runs before that is moved elsewhere."""

SOON_S: Final = 1.0
"""Where no restart is put off for longer, a replica that was up is waited for; nobody is refused meanwhile."""

MOVE_S: Final = 1.0
"""How often it is then looked whether others have room for some of it."""

STARTS: Final = 9
"""Starts that are remembered for how long one takes."""

MOST_RETRY_S: Final = 30.0
"""The longest that a client is told to stay away, however long a start takes."""


class Replicas:
    """Starts, watches, restarts and ends the replicas of one service and tells its dispatcher who takes work.

    `specs` gives one engine for each replica that there may be; it is asked at the start, when the service has been
    prepared. `least` of them are started then (`None`: all), `scale` tells the number later. With `least` 0 a service
    is available without any: the first request wants one. With `in_order` the last place is the first to be left,
    however much its replica holds: for servers that others stop in that order. With `first_stays` the first place is
    never left while others are wanted, also while its replica is down: it does what they cannot. `on_info` hears what
    an engine is each time one becomes ready, each of `started` how many seconds a start took.
    """

    def __init__(
        self,
        service: str,
        specs: Callable[[], Sequence[EngineSpec]],
        launcher: Launcher,
        dispatcher: Dispatcher,
        on_info: Callable[[EngineInfo], None],
        *,
        least: int | None = None,
        drain_s: float = DRAIN_S,
        in_order: bool = False,
        first_stays: bool = False,
    ) -> None:
        self.service = service
        self.started: list[Callable[[float], None]] = []
        self.returns = Returns()
        """What starts have taken, by what was there before."""
        self._specs = specs
        self._launcher = launcher
        self._dispatcher = dispatcher
        self._on_info = on_info
        self._least = least
        self._drain_s = drain_s
        self._in_order = in_order
        self._first_stays = first_stays
        self._seats: list[Seat] = []
        self._seats_made = 0
        self._starts: deque[float] = deque(maxlen=STARTS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._started = False
        self._stopping = False

    # --- what is known

    @property
    def all(self) -> list[Replica]:
        """Every replica there is, in order of their seats, and those that were lost and are to be started again."""
        return [seat.replica for seat in self._seats if seat.replica is not None]

    @property
    def seats(self) -> Sequence[Seat]:
        """The places, in the order in which they came: empty ones, and those whose servers are leaving, too."""
        return self._seats

    @property
    def spec(self) -> EngineSpec | None:
        """How the first of them is made, as most are like it; `None` while there is no place for any."""
        return self._seats[0].spec if self._seats else None

    @property
    def ready(self) -> list[Replica]:
        """Those that take work."""
        return [replica for replica in self.all if replica.state is State.READY]

    @property
    def wanted(self) -> int:
        """How many there should be."""
        return sum(seat.wanted for seat in self._seats)

    @property
    def start_s(self) -> float:
        """How long a start takes, in seconds: the median of the last ones; 0 before any."""
        return statistics.median(self._starts) if self._starts else 0.0

    def views(self, now: float) -> tuple[ReplicaView, ...]:
        """Each of them as scaling sees it. Not to be kept.

        One that is wanted and lost, or about to end, has a successor coming: it counts as starting. So does one whose
        start only waits until its place may be tried again.
        """
        return tuple(
            ReplicaView(name=self._name(seat), phase="starting", since=now)
            if seat.replica is None
            else seat.replica.view(now, seat.spec.liveness_s * (LOOKS - 2) / LOOKS, succeeded=seat.wanted)
            for seat in self._seats
            if seat.replica is not None or seat.wanted
        )

    @property
    def _starting(self) -> bool:
        return any(replica.state is State.STARTING for replica in self.all)

    # --- a service that may have none (see `dispatch.cold.OnDemand`)

    @property
    def on_demand(self) -> bool:
        """Whether there may be none, and one is started when a request comes."""
        return self._least == 0 and not all(seat.closing for seat in self._seats)

    @property
    def limit_s(self) -> float:
        """The longest that a start may take."""
        return max((seat.spec.start_limit_s for seat in self._seats), default=0.0)

    def coming(self) -> bool:
        """Whether one starts, or will be started without being asked for."""
        return any(seat.wanted and not seat.ready for seat in self._seats)

    def ready_in(self, now: float) -> float:
        """Seconds until the first one that is not ready yet is expected to be; a whole start where none has begun."""
        waits = [seat.wait_s(now) + self.start_s for seat in self._seats if seat.wanted and seat.alive is None]
        starting = [one for one in self.all if one.state is State.STARTING]
        waits += [max(self.start_s - (now - one.launched_at), 0.0) for one in starting]
        return min(waits, default=self.start_s)

    def retry_s(self, now: float) -> float:
        """When to come again while none is ready: once one should be.

        Where no start has been measured it is taken to last twice as long as it has already.
        """
        if self._starts:
            return min(max(self.ready_in(now), 1.0), MOST_RETRY_S)
        begun = [one.launched_at for one in self.all if one.state is State.STARTING]
        return min(max(now - min(begun), 1.0), MOST_RETRY_S) if begun else 1.0

    # --- all of them

    async def start(self) -> None:
        """Start the least number of them side by side, until the first is ready; the others follow.

        Raises EngineStartError when none becomes ready.
        """
        for spec in self._specs():
            self._add(spec)
        for seat in self._seats[: self._least]:
            self._want(seat)
        while not self.ready and self._starting:
            self._news.clear()
            await self._news.wait()
        if self.wanted and not self.ready:
            reason = next((replica.reason for replica in self.all if replica.reason), "it ended before it was ready")
            await self.stop(0.0)
            raise EngineStartError(f"service {self.service!r}: no replica could be started: {reason}")
        self._started = True
        if self.on_demand:
            self._dispatcher.wait_for(self, self._one)
        for seat in self._seats:
            if seat.replica is not None and seat.replica.state is State.GONE:
                self._replace(seat, seat.replica)

    async def stop(self, drain_s: float) -> None:
        """Drain and end all of them; nothing is started after this."""
        self._stopping = True
        for seat in self._seats:
            seat.cancel_start()
            self._end_retiring(seat)
        await asyncio.gather(*(replica.leave(drain_s) for replica in self.all))
        if self._tasks:
            await asyncio.wait(self._tasks)

    # --- how many of them

    def scale(self, wanted: int) -> None:
        """Have so many, as far as there are places for them. Returns at once; the same number again changes nothing.

        Up: those that are still leaving are taken back first, then others are started. Down: those that hold least
        are given nothing new, finish what they run, and are then ended.
        """
        if not self._started or self._stopping:
            return
        seats = [seat for seat in self._seats if not seat.closing]
        more = min(max(wanted, 0), len(seats)) - sum(seat.wanted for seat in seats)
        if more > 0:
            for seat in first_to_take(seat for seat in seats if not seat.wanted)[:more]:
                self._want(seat)
        elif more < 0:
            wanted_ones = [seat for seat in seats if seat.wanted]
            if self._first_stays and wanted_ones[0] is seats[0] and -more < len(wanted_ones):
                del wanted_ones[0]
            for seat in first_to_leave(wanted_ones, self._in_order)[:-more]:
                self._unwant(seat)
        if self.on_demand and not self.wanted:
            self._dispatcher.unavailable = None  # what went wrong with the last one need not befall the next

    def _one(self) -> None:
        """A request waits, and there is none: what is done where nobody else decides."""
        if not self.wanted:
            self.scale(1)

    def join(self, spec: EngineSpec) -> str:
        """One more place, for a server that is there already. Returns the name of its replica, which starts.

        Raises EngineStartError when all of them are being ended: nobody would end this one.
        """
        if self._stopping:
            raise EngineStartError(f"service {self.service!r} is ending; nothing joins it")
        seat = self._add(spec)
        self._want(seat)
        return self._name(seat)

    def leave(self, which: str) -> str:
        """A server goes: by its replica's name or by the address that its engine has as `url`. Returns that name.

        What runs there ends as when scaling down. Raises LookupError, which names those there are.
        """
        for seat in self._seats:
            if not seat.closing and which in (self._name(seat), seat.spec.options.get("url")):
                break
        else:
            there = [str(seat.spec.options.get("url", self._name(seat))) for seat in self._seats if not seat.closing]
            raise LookupError(f"service {self.service!r} has no replica {which!r}{choices(which, there)}")
        name = self._name(seat)
        seat.closing = True
        if seat.wanted:
            self._unwant(seat)
        self._drop_if_empty(seat)
        if not self.wanted and not self.on_demand:
            self._dispatcher.give_up(f"service {self.service!r} has no replicas: the last one left")
        return name

    # --- one of them

    def _add(self, spec: EngineSpec) -> Seat:
        seat = Seat(self._seats_made, spec)
        self._seats_made += 1
        self._seats.append(seat)
        return seat

    def _name(self, seat: Seat) -> str:
        return f"{self.service}/{seat.index}.{seat.generation}"

    def _want(self, seat: Seat) -> None:
        seat.wanted = True
        alive = seat.alive
        if alive is None:
            self._launch_in(seat, seat.wait_s(asyncio.get_running_loop().time()))
        elif alive.state is State.ISOLATED:
            self._end_retiring(seat)
            log.info("replica %s is taken back", alive.name)
            alive.take_back()
            self._dispatcher.attach(alive)

    def _unwant(self, seat: Seat) -> None:
        seat.wanted = False
        seat.cancel_start()
        alive = seat.alive
        if alive is None:
            seat.replica = None
        elif alive.state is State.STARTING:
            alive.dismiss()
            seat.retiring = self._spawn(alive.leave(0.0), f"the end of {alive.name}")
        elif alive.state is State.READY:
            log.info("replica %s is not wanted any more; it finishes %d requests", alive.name, len(alive.held))
            alive.isolate()
            self._dispatcher.isolate(alive)
            seat.retiring = self._spawn(self._retire(alive), f"the end of {alive.name}")

    async def _retire(self, replica: Replica) -> None:
        """End an isolated replica once it holds nothing; what takes too long goes on elsewhere where it can."""
        if not await replica.emptied(self._drain_s):
            log.info("replica %s still holds %d requests after %g s", replica.name, len(replica.held), self._drain_s)
            while replica.held:
                moved = self._dispatcher.move(replica)
                await replica.emptied(0.0 if moved else MOVE_S)
        await replica.leave(0.0)

    def _end_retiring(self, seat: Seat) -> None:
        """Of one that may still be taken back."""
        if seat.retiring is not None and seat.alive is not None and seat.alive.state is State.ISOLATED:
            seat.retiring.cancel()
            seat.retiring = None

    def _launch_in(self, seat: Seat, wait: float) -> None:
        seat.cancel_start()
        if wait > 0:
            seat.timer = asyncio.get_running_loop().call_later(wait, self._launch, seat)
        else:
            self._launch(seat)

    def _launch(self, seat: Seat) -> None:
        seat.timer = None
        seat.generation += 1
        replica = Replica(
            self._name(seat),
            on_ready=lambda ready: self._ready(seat, ready),
            on_chunks=self._chunks,
            on_gone=lambda gone: self._gone(seat, gone),
            on_room=self._dispatcher.changed,
            on_woke=lambda seconds: self.returns.add(Stage.WORKERS, seconds),
        )
        seat.replica = replica
        self._spawn(self._connect(replica, seat.spec), f"the launch of {replica.name}")

    async def _connect(self, replica: Replica, spec: EngineSpec) -> None:
        try:
            replica.connect(await self._launcher.launch(replica.name, spec, replica))
        except OSError as error:
            replica.exited(f"its process could not be started: {error}")
        except Exception as error:
            log.exception("replica %s could not be launched", replica.name)
            replica.exited(f"it could not be launched: {error}")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- what they tell

    def _ready(self, seat: Seat, replica: Replica) -> None:
        assert replica.info is not None
        took = replica.since - replica.launched_at
        log.info("replica %s is ready after %.1f s", replica.name, took)
        self._starts.append(took)
        present = getattr(replica.connection, "present", lambda: None)()  # of worker processes alone
        if present is not None:
            self.returns.add(stage(present), took)
        seat.filled()
        self._news.set()
        self._on_info(replica.info)
        self._dispatcher.attach(replica)
        for tell in self.started:
            tell(took)

    def _chunks(self, replica: Replica, message: Chunks) -> None:
        self._dispatcher.chunks(replica, message.chunks)

    def _gone(self, seat: Seat, replica: Replica) -> None:
        """End or retry what it held. A wanted one has a successor: at once after a first loss, ever later after more.

        One that is not wanted any more has none, whatever ended it.
        """
        self._news.set()
        self._dispatcher.detach(replica, replica.reason)
        if self._stopping or not self._started:
            return
        if not seat.wanted:
            if not replica.leaving:
                log.warning("replica %s is gone (%s) before it was to end", replica.name, replica.reason)
            seat.replica = None
            self._drop_if_empty(seat)
        elif replica.leaving:
            self._launch_in(seat, 0.0)
        else:
            self._replace(seat, replica)

    def _replace(self, seat: Seat, lost: Replica) -> None:
        now = asyncio.get_running_loop().time()
        level = logging.WARNING if seat.worth_saying(lost, now) else logging.DEBUG
        wait = seat.lost(lost, now)
        log.log(level, "replica %s is gone (%s); restart in %g s", lost.name, lost.reason, wait)
        # One that was up and is cheap to start is soon up again. One that does not even start may never be.
        most_s = seat.spec.most_backoff_s
        soon = lost.ever_ready and most_s is not None and most_s <= SOON_S
        if wait and not soon and not self.ready and not self._starting:
            self._dispatcher.give_up(f"no replica of {self.service!r} is up; the last was lost: {lost.reason}")
        self._launch_in(seat, wait)

    def _drop_if_empty(self, seat: Seat) -> None:
        if seat.closing and seat.replica is None and seat in self._seats:
            self._seats.remove(seat)
