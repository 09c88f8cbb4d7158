"""The replicas of one service: keeps the wanted number alive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from foreserve.core import EngineInfo, EngineSpec
from foreserve.dispatch.dispatcher import Dispatcher
from foreserve.errors import EngineStartError
from foreserve.fleet.replica import Replica, State
from foreserve.messages import Chunks
from foreserve.ports import Launcher

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
MOST_BACKOFF_S = 30.0
PROVEN_S = 60.0
"""A replica that was ready this long has proven itself: its next loss counts as the first again."""


def backoff(losses: int, most_s: float | None = None) -> float:
    """Seconds before the restart that follows the `losses`-th loss in a row: none after the first."""
    return (
        0.0
        if losses <= 1
        else min(FIRST_BACKOFF_S * 2.0 ** min(losses - 2, 32), MOST_BACKOFF_S if most_s is None else most_s)
    )


class Seat:
    """The place of one replica: its present holder and how often in a row a holder was lost."""

    def __init__(self, index: int, spec: EngineSpec) -> None:
        self.index = index
        self.spec = spec
        self.generation = 0
        self.losses = 0
        self.replica: Replica | None = None


class Replicas:
    """Starts, watches and restarts the replicas of one service and tells its dispatcher who is ready.

    `specs` gives one engine for each replica; it is asked at the start, when the service has been prepared. `on_info`
    hears what an engine is each time one becomes ready.
    """

    def __init__(
        self,
        service: str,
        specs: Callable[[], Sequence[EngineSpec]],
        launcher: Launcher,
        dispatcher: Dispatcher,
        on_info: Callable[[EngineInfo], None],
    ) -> None:
        self.service = service
        self._specs = specs
        self._launcher = launcher
        self._dispatcher = dispatcher
        self._on_info = on_info
        self._seats: list[Seat] = []
        self._restarts: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._started = False
        self._stopping = False

    @property
    def all(self) -> list[Replica]:
        """Every replica there is, in order of their seats."""
        return [seat.replica for seat in self._seats if seat.replica is not None]

    @property
    def ready(self) -> list[Replica]:
        """Those that take work."""
        return [replica for replica in self.all if replica.state is State.READY]

    @property
    def _starting(self) -> bool:
        return any(replica.state is State.STARTING for replica in self.all)

    async def start(self) -> None:
        """Start all of them side by side, until the first is ready; the others follow.

        Raises EngineStartError when none becomes ready.
        """
        self._seats = [Seat(index, spec) for index, spec in enumerate(self._specs())]
        await asyncio.gather(*(self._launch(seat) for seat in self._seats))
        while not self.ready and self._starting:
            self._news.clear()
            await self._news.wait()
        if self._seats and not self.ready:
            reason = next((replica.reason for replica in self.all if replica.reason), "it ended before it was ready")
            await self.stop(0.0)
            raise EngineStartError(f"service {self.service!r}: no replica could be started: {reason}")
        self._started = True
        for seat in self._seats:
            if seat.replica is not None and seat.replica.state is State.GONE:
                self._replace(seat, seat.replica)

    async def stop(self, drain_s: float) -> None:
        """Drain and end all of them; nothing is restarted after this."""
        self._stopping = True
        for task in list(self._restarts):
            task.cancel()
        await asyncio.gather(*(replica.leave(drain_s) for replica in self.all))

    async def _launch(self, seat: Seat) -> None:
        seat.generation += 1
        name = f"{self.service}/{seat.index}.{seat.generation}"
        replica = Replica(
            name,
            on_ready=self._ready,
            on_chunks=self._chunks,
            on_gone=lambda gone: self._gone(seat, gone),
        )
        seat.replica = replica
        try:
            replica.connect(await self._launcher.launch(name, seat.spec, replica))
        except OSError as error:
            replica.exited(f"its process could not be started: {error}")

    def _ready(self, replica: Replica) -> None:
        assert replica.info is not None
        log.info("replica %s is ready", replica.name)
        self._news.set()
        self._on_info(replica.info)
        self._dispatcher.attach(replica)

    def _chunks(self, replica: Replica, message: Chunks) -> None:
        self._dispatcher.chunks(replica, message.chunks)

    def _gone(self, seat: Seat, replica: Replica) -> None:
        """End or retry what it held and start its successor: at once after a first loss, ever later after more."""
        self._news.set()
        self._dispatcher.detach(replica, replica.reason)
        if self._started and not self._stopping:
            self._replace(seat, replica)

    def _replace(self, seat: Seat, lost: Replica) -> None:
        loop = asyncio.get_running_loop()
        proven = lost.ready_at is not None and loop.time() - lost.ready_at >= PROVEN_S
        seat.losses = 1 if proven else seat.losses + 1
        wait = backoff(seat.losses, seat.spec.most_backoff_s)
        log.warning("replica %s is gone (%s); restart in %g s", lost.name, lost.reason, wait)
        if wait and not self.ready and not self._starting:
            self._dispatcher.give_up(f"no replica of {self.service!r} is up; the last was lost: {lost.reason}")
        task = loop.create_task(self._restart(seat, wait))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _restart(self, seat: Seat, wait: float) -> None:
        await asyncio.sleep(wait)
        await self._launch(seat)
