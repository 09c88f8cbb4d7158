"""One replica as the gateway knows it: its state, what it holds, and the events of its connection."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from foreserve.core import Chunk, Cost, EngineInfo, EngineLoad, Work
from foreserve.fleet.occupancy import Occupancy
from foreserve.messages import (
    Abort,
    Chunks,
    Drain,
    Drained,
    Feed,
    FromWorker,
    Heartbeat,
    Ready,
    Rested,
    Run,
    StartFailed,
    Woke,
)
from foreserve.ports import Connection, Room
from foreserve.scaling import ReplicaPhase, ReplicaView

log = logging.getLogger(__name__)


class State(StrEnum):
    """A replica's life, in order. An isolated one may become ready again; `gone` follows any other.

    An isolated replica is given nothing new; a draining one has been told to end.
    """

    STARTING = "starting"
    READY = "ready"
    ISOLATED = "isolated"
    DRAINING = "draining"
    GONE = "gone"


PHASES: dict[State, ReplicaPhase] = {
    State.STARTING: "starting",
    State.READY: "ready",
    State.ISOLATED: "isolated",
    State.DRAINING: "draining",
    State.GONE: "starting",
}
"""As scaling calls them. A lost replica that is wanted is about to be started again."""


class Replica:
    """Listens to one connection and keeps what the replica holds, by its messages alone.

    It counts a request as held until the engine says that it has stopped, so that an engine is never given more than it
    can start, also while it still works on what was aborted.
    """

    def __init__(
        self,
        name: str,
        *,
        on_ready: Callable[[Replica], None],
        on_chunks: Callable[[Replica, Chunks], None],
        on_gone: Callable[[Replica], None],
        on_room: Callable[[Replica], None] | None = None,
        on_woke: Callable[[float], None] | None = None,
    ) -> None:
        self.name = name
        self.state = State.STARTING
        self.reason = ""
        """Why it is gone, in words."""
        self.leaving = False
        """Of one that is gone: whether it had been told to end."""
        self.info: EngineInfo | None = None
        self.load: EngineLoad | None = None
        self.ever_ready = False
        self.rests = False
        """Whether it has let go of its weights on a device until it is wanted."""
        self.launched_at = self.since = self.heard_at = self._now()
        """Loop seconds: of its launch, of its present state's beginning, of the last message from it."""
        self.ready_at: float | None = None
        self._occupancy = Occupancy({})
        self._room: Room | None = None
        """What it could take at `_room_at`, unless something has changed since: it is asked several times in a turn."""
        self._room_at = 0.0
        self._room_changes = 0
        self.settled = asyncio.Event()
        """Set once it is ready or gone."""
        self._empty = asyncio.Event()
        """Set when it holds nothing any more, once it is given nothing new."""
        self._launched = asyncio.Event()
        """Set once it has its connection, or will never have one."""
        self.connection: Connection | None = None
        self._on_ready = on_ready
        self._on_chunks = on_chunks
        self._on_gone = on_gone
        self._on_room = on_room
        """Hears when what others hold of it has changed."""
        self._on_woke = on_woke
        """Hears how many seconds it took to have its weights copied to their device again."""

    # --- what the dispatcher asks

    @property
    def held(self) -> Mapping[str, Work]:
        """What it was given and has not ended, by id."""
        return self._occupancy.held

    def capacity(self) -> Cost:
        """What it can hold at once; empty until it is ready."""
        return self.info.capacity if self.info else {}

    def room(self) -> Room | None:
        """What it can take now. A static engine takes one batch, and the next when that has ended."""
        if self.state is not State.READY or self.info is None:
            return None
        if self.info.batching == "static" and self.held:
            return None
        now = self._now()
        if self._room is not None and self._room_at == now:
            return self._room
        free, ahead = self._occupancy.room(now)
        if free["slots"] < 1:
            return None
        self._room_at = now
        occupancy = self._occupancy
        if self._room is not None and self._room_changes == occupancy.changes:
            return self._room
        self._room_changes = occupancy.changes
        self._room = Room(
            replica=self.name,
            free=free,
            capacity=self.info.capacity,
            holds=self.info.holds,
            running=len(occupancy.held),
            load=self.load,
            ahead=ahead,
            tokens=occupancy.tokens,
            unread=occupancy.unread,
            token_s=occupancy.token_s,
            step_s=occupancy.step_s,
            heard=self.heard_at,
        )
        return self._room

    def view(self, now: float, fresh_s: float, *, succeeded: bool = False) -> ReplicaView:
        """As scaling sees it; what it says of itself is fresh for `fresh_s`. Its `ahead` is not to be kept.

        `succeeded`: it has a successor as soon as it has ended.
        """
        phase = PHASES[self.state]
        if phase == "starting" or (succeeded and phase == "draining"):
            return ReplicaView(name=self.name, phase="starting", since=self.since)
        return ReplicaView(
            name=self.name,
            phase=phase,
            since=self.since,
            running=len(self.held),
            slots=self.capacity().get("slots", 0.0),
            load=self.load,
            ahead=self._occupancy.room(now)[1],
            known=now - self.heard_at <= fresh_s,
        )

    def run(self, works: Sequence[Work], plan: Any, cached: int = 0) -> None:
        """Give it work for which it has room. So many tokens of the prompts are expected to be cached there."""
        self._room = None
        self._occupancy.start(works, self._now(), cached)
        self._send(Run(works=tuple(works), plan=plan))

    def abort(self, ids: Sequence[str]) -> None:
        """Stop what it runs, within one step. Ids that it does not hold are ignored."""
        held = tuple(request_id for request_id in ids if request_id in self.held)
        if held:
            self._send(Abort(ids=held, attempts=tuple(self.held[request_id].attempt for request_id in held)))

    def feed(self, request_id: str, data: Any, last: bool) -> None:
        """More of an input that is still growing. A request that it does not hold is ignored."""
        if request_id in self.held:
            self._send(Feed(id=request_id, data=data, last=last))

    # --- what its connection tells

    def connect(self, connection: Connection) -> None:
        """The launcher's connection; given once, right after the launch."""
        self.connection = connection
        self._launched.set()

    @property
    def pid(self) -> int | None:
        """The worker's process, where it has one of its own."""
        return self.connection.pid if self.connection else None

    @property
    def node(self) -> str | None:
        """The host that it runs on, where its launcher tells of one."""
        return getattr(self.connection, "node", None)

    def heard(self, message: FromWorker) -> None:
        """See `ports.Listener`."""
        self._room = None
        self.heard_at = self._now()
        match message:
            case Chunks(chunks=chunks) if self.info is not None:
                self._take_note(chunks)
                self._on_chunks(self, message)
                self._look_if_empty()
            case Heartbeat(load=load):
                before, self.load = self.load, load
                self._occupancy.heard(load, self.heard_at)
                if self._on_room is not None and load.others != (before.others if before else None):
                    self._on_room(self)
            case Ready(info=info) if self.state is State.STARTING:
                self.info = info
                self._occupancy = Occupancy(info.capacity, info.holds)
                self._enter(State.READY)
                self.ready_at = self.since
                self.ever_ready = True
                self.settled.set()
                self._on_ready(self)
            case StartFailed(reason=reason):
                self.reason = reason
            case Rested():
                self.rests = True
            case Woke(seconds=seconds, copied=copied):
                self.rests = False
                if self._on_woke is not None and copied:
                    self._on_woke(seconds)
            case Drained():
                self._empty.set()

    def _take_note(self, chunks: Sequence[Chunk]) -> None:
        """Who has begun to answer, and who has ended."""
        occupancy, now = self._occupancy, self._now()
        first = [chunk.id for chunk in chunks if not chunk.index and _answers(chunk)]
        if first:
            occupancy.answered(first, now)
        for chunk in chunks:
            if chunk.finish is not None:
                occupancy.end(chunk.id, now, chunk.finish.usage.get("output_tokens", 0.0))

    def exited(self, reason: str) -> None:
        """See `ports.Listener`."""
        if self.state is State.GONE:
            return
        self.leaving = self.state is State.DRAINING
        self._enter(State.GONE)
        self.reason = self.reason or reason
        self.settled.set()
        self._empty.set()
        self._launched.set()
        self._on_gone(self)
        self._occupancy.clear()

    # --- leaving

    def isolate(self) -> None:
        """Take nothing new. Of a ready one; what it holds goes on."""
        self._enter(State.ISOLATED)
        self._look_if_empty()

    def take_back(self) -> None:
        """Take work again. Of an isolated one."""
        self._empty.clear()
        self._enter(State.READY)

    def dismiss(self) -> None:
        """Never become ready. Of one that starts; `leave` ends it."""
        self._enter(State.DRAINING)

    async def emptied(self, limit_s: float) -> bool:
        """Wait until it holds nothing or is gone, for at most `limit_s`. Of one that takes nothing new."""
        try:
            # Not `wait_for`: until Python 3.12 it is deaf to who cancels it just when the wait has ended, and a replica
            # that was taken back in that moment would be ended all the same.
            async with asyncio.timeout(limit_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def leave(self, drain_s: float, grace_s: float = 5.0) -> None:
        """Finish what it holds, for at most `drain_s`, then end it. Returns when it is gone.

        One that starts is ended as soon as it can be.
        """
        if self.state in (State.READY, State.ISOLATED):
            self._enter(State.DRAINING)
            self._send(Drain())
            if self.held and not await self.emptied(drain_s):
                log.warning("replica %s still held %d requests after %g s", self.name, len(self.held), drain_s)
        elif self.state is State.STARTING:
            self.dismiss()
        await self._launched.wait()
        if self.connection is not None:
            await self.connection.stop(grace_s)

    def _look_if_empty(self) -> None:
        if self.state in (State.ISOLATED, State.DRAINING) and not self.held:
            self._empty.set()

    def _enter(self, state: State) -> None:
        self._room = None
        self.state, self.since = state, self._now()

    def _send(self, message: Run | Abort | Drain | Feed) -> None:
        if self.connection is not None and self.state is not State.GONE:
            self.connection.send(message)

    @functools.cached_property
    def _now(self) -> Callable[[], float]:
        return asyncio.get_running_loop().time


def _answers(chunk: Chunk) -> bool:
    """Whether a first chunk tells that the prompt was read, not that the request was stopped or refused."""
    return chunk.data is not None or (chunk.finish is not None and chunk.finish.reason in ("stop", "length"))
