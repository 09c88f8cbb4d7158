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
from foreserve.messages import Abort, Chunks, Drain, Drained, FromWorker, Heartbeat, Ready, Run, StartFailed
from foreserve.ports import Connection, Room

log = logging.getLogger(__name__)


class State(StrEnum):
    """A replica's life, in order. `gone` follows any other."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


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
    ) -> None:
        self.name = name
        self.state = State.STARTING
        self.reason = ""
        """Why it is gone, in words."""
        self.info: EngineInfo | None = None
        self.load: EngineLoad | None = None
        self.ever_ready = False
        self.ready_at: float | None = None
        self._occupancy = Occupancy({})
        self._room: Room | None = None
        """What it could take at `_room_at`, unless something has changed since: it is asked several times in a turn."""
        self._room_at = 0.0
        self._heard_at: float | None = None
        """When its last message came, of whatever kind."""
        self.settled = asyncio.Event()
        """Set once it is ready or gone."""
        self._drained = asyncio.Event()
        self.connection: Connection | None = None
        self._on_ready = on_ready
        self._on_chunks = on_chunks
        self._on_gone = on_gone

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
        if self._room is not None and self._room.free is free:
            return self._room
        occupancy = self._occupancy
        self._room = Room(
            replica=self.name,
            free=free,
            capacity=self.info.capacity,
            running=len(occupancy.held),
            load=self.load,
            ahead=ahead,
            tokens=occupancy.tokens,
            unread=occupancy.unread,
            token_s=occupancy.token_s,
            step_s=occupancy.step_s,
            heard=self._heard_at,
        )
        return self._room

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

    # --- what its connection tells

    def connect(self, connection: Connection) -> None:
        """The launcher's connection; given once, right after the launch."""
        self.connection = connection

    @property
    def pid(self) -> int | None:
        """The worker's process, where it has one of its own."""
        return self.connection.pid if self.connection else None

    def heard(self, message: FromWorker) -> None:
        """See `ports.Listener`."""
        self._room = None
        self._heard_at = self._now()
        match message:
            case Chunks(chunks=chunks) if self.info is not None:
                self._take_note(chunks)
                self._on_chunks(self, message)
                if self.state is State.DRAINING and not self.held:
                    self._drained.set()
            case Heartbeat(load=load):
                self.load = load
                self._occupancy.heard(load, self._heard_at)
            case Ready(info=info):
                self.info = info
                self._occupancy = Occupancy(info.capacity, info.holds)
                self.state = State.READY
                self.ready_at = self._now()
                self.ever_ready = True
                self.settled.set()
                self._on_ready(self)
            case StartFailed(reason=reason):
                self.reason = reason
            case Drained():
                self._drained.set()

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
        self.state = State.GONE
        self.reason = self.reason or reason
        self.settled.set()
        self._drained.set()
        self._on_gone(self)
        self._occupancy.clear()

    # --- leaving

    async def leave(self, drain_s: float, grace_s: float = 5.0) -> None:
        """Finish what it holds, for at most `drain_s`, then end it. Returns when it is gone."""
        if self.state is State.READY:
            self.state = State.DRAINING
            self._send(Drain())
            if self.held:
                try:
                    await asyncio.wait_for(self._drained.wait(), drain_s)
                except TimeoutError:
                    log.warning("replica %s still held %d requests after %g s", self.name, len(self.held), drain_s)
        if self.connection is not None:
            await self.connection.stop(grace_s)

    def _send(self, message: Run | Abort | Drain) -> None:
        if self.connection is not None and self.state is not State.GONE:
            self.connection.send(message)

    @functools.cached_property
    def _now(self) -> Callable[[], float]:
        return asyncio.get_running_loop().time


def _answers(chunk: Chunk) -> bool:
    """Whether a first chunk tells that the prompt was read, not that the request was stopped or refused."""
    return chunk.data is not None or (chunk.finish is not None and chunk.finish.reason in ("stop", "length"))
