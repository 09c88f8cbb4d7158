"""One replica as a Ray actor, as its gateway sees it: found a node, spoken with in batches, ended once."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from foreserve import __version__, clock
from foreserve.core import EngineSpec
from foreserve.errors import EngineStartError
from foreserve.fleet.carrying import carried, refusal
from foreserve.fleet.process import log_level
from foreserve.fleet.ray_actor import Found, ReplicaActor
from foreserve.fleet.ray_cluster import Cluster
from foreserve.fleet.ray_nodes import Nodes
from foreserve.fleet.ray_outbox import BATCH_BYTES
from foreserve.fleet.watch import Watch
from foreserve.messages import StartFailed, ToWorker, decode_from_worker
from foreserve.ports import Listener
from foreserve.runtime.outbox import MessageTooLong
from foreserve.runtime.wire import UNREAD_BYTES

log = logging.getLogger(__name__)

CALLS: Final = 8
"""Calls that an actor answers at once: one poll, one batch to it, and control."""

TELL_S: Final = 15.0
"""After so long people are told that a replica waits for a node."""

KILL_S: Final = 2.0
"""How long an actor may take to end its engine before it is ended itself, and how long Ray may take to tell of that."""

TURN_MESSAGES: Final = 64
"""Messages of a batch that are handled before the loop's other work has its turn."""


class RayConnection:
    """One actor. What is sent before it has found its node waits for it.

    Each way one batch at a time is under way, and what gathers meanwhile is the next: the busier, the fewer calls a
    message. At most `UNREAD_BYTES` wait here; in the actor's outbox a little more, then its engine is slowed down.
    """

    pid: int | None = None
    """None: its process may be on another machine."""

    def __init__(
        self,
        name: str,
        spec: EngineSpec,
        listener: Listener,
        *,
        cluster: Cluster,
        nodes: Nodes,
        options: Mapping[str, Any],
        wants: str,
        place_s: float,
        max_message_bytes: int,
    ) -> None:
        self.gone = asyncio.Event()
        self.found: Found | None = None
        """Where it runs, once that is known."""
        self.released = False
        """Whether Ray has nothing of it any more."""
        self._name = name
        self._spec = spec
        self._cluster = cluster
        self._nodes = nodes
        self._options = options
        self._wants = wants
        self._place_s = place_s
        self._limit = max_message_bytes
        self._why: str | None = None
        self._actor: Any = None
        self._ray: Any = None
        self._started = False
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._to_send = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        patient = msgspec.structs.replace(spec, start_limit_s=spec.start_limit_s + place_s)
        # The actor's own watch has the spec's limits; this one is for a node that cannot be heard any more.
        self._watch = Watch(patient, listener, self._end, self._waits)
        self._placing: asyncio.TimerHandle | None = None
        self._living = self._loop.create_task(self._live(), name=f"the actor of {name}")
        self._tasks: set[asyncio.Task[None]] = {self._living}
        self._forced = False

    @property
    def node(self) -> str | None:
        """The host that it runs on, once that is known."""
        return self.found.host if self.found is not None else None

    # --- Connection

    def send(self, message: ToWorker) -> None:
        """As `Connection.send`. Work that cannot be carried ends `rejected`; such a `Feed` raises TooLarge."""
        if self.gone.is_set():
            return
        try:
            data = carried(message, self._limit)
        except (MessageTooLong, TypeError, ValueError) as error:
            instead = refusal(self._name, message, error)
            if isinstance(instead, tuple):
                for part in instead:
                    self.send(part)
            else:
                self._loop.call_soon(self._watch.heard, instead)
            return
        if self._unsent and self._unsent_bytes + len(data) > max(UNREAD_BYTES, self._limit):
            self._end("it has stopped reading its messages")
            return
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        self._to_send.set()

    async def stop(self, grace_s: float) -> None:
        """As `Connection.stop`; Ray has `KILL_S` more to tell of the end."""
        if self.gone.is_set():
            return
        self._why = self._why or "stopped"
        if self._started and not self._forced:
            self._spawn(self._ask("stop", grace_s))
            await self._gone_within(grace_s + KILL_S)
        if not self.gone.is_set():
            self._force()
        await self.gone.wait()

    def kill(self) -> None:
        """End it and all it has started, at once."""
        self._end("killed")

    async def release(self) -> None:
        """Wait until Ray has nothing of it any more. Of one that is gone."""
        while tasks := [task for task in self._tasks if not task.done()]:
            await asyncio.wait(tasks)

    # --- its life

    async def _live(self) -> None:
        """From the first to the last, however that comes about."""
        reason = "its actor was abandoned"
        try:
            reason = await self._run()
        except EngineStartError as error:
            self._watch.heard(StartFailed(str(error)))
            reason = f"the engine did not start: {error}"
        except asyncio.CancelledError:
            pass
        except Exception as error:
            if self._ray is not None and isinstance(error, self._ray.exceptions.RayError):
                reason = f"its actor is gone: {_words(error)}"
            else:
                log.exception("replica %s", self._name)
                reason = f"its actor could not be used: {error}"
        finally:
            self._finally(reason)

    async def _run(self) -> str:
        try:
            spec = msgspec.msgpack.encode(self._spec)
        except (TypeError, ValueError, OverflowError) as error:
            words = f"the engine's options are wrong: they cannot be sent to the engine: {error}"
            raise EngineStartError(f"{self._name}: {words}") from error
        self._ray = await self._cluster.joined()
        self._actor = await clock.offload(self._make)
        self._placing = self._loop.call_later(min(TELL_S, self._place_s), self._still_waits)
        self.found = found = await self._actor.found.remote()
        self._placing.cancel()
        log.debug("replica %s is on %s, process %d", self._name, found.host, found.pid)
        if found.version != __version__:
            raise EngineStartError(f"{found.host} has Foreserve {found.version}, this gateway {__version__}")
        env = await self._nodes.env(found.node) if self._spec.weights else {}
        if self._why is not None:  # it was to end while it came up
            return self._why
        await self._actor.start.remote(self._name, spec, env)
        self._started = True
        self._spawn(self._sending())
        return await self._polling()

    def _make(self) -> Any:
        made = self._ray.remote(ReplicaActor).options(
            max_concurrency=CALLS, max_restarts=0, max_task_retries=0, **self._options
        )
        return made.remote(log_level())

    async def _polling(self) -> str:
        """Hear it until its end; the reason of that."""
        while True:
            messages, ended = await self._actor.poll.remote()
            for at, data in enumerate(messages, 1):
                try:
                    self._watch.heard(decode_from_worker(data))
                except msgspec.DecodeError as error:
                    self._end(f"it sent a message that this version does not know: {error}")
                if at % TURN_MESSAGES == 0:
                    await asyncio.sleep(0)
            if ended is not None:
                return str(ended)

    async def _sending(self) -> None:
        try:
            while not self.gone.is_set():
                await self._to_send.wait()
                batch: list[bytes] = []
                size = 0
                while self._unsent and size < BATCH_BYTES:
                    batch.append(self._unsent.popleft())
                    size += len(batch[-1])
                if not self._unsent:
                    self._to_send.clear()
                if batch:
                    await self._actor.take.remote(batch)
                    self._unsent_bytes -= size
        except self._ray.exceptions.RayError as error:
            log.debug("replica %s hears nothing any more: %s", self._name, error)  # the poll tells of it

    # --- its end

    def _waits(self) -> str:
        return "" if self.found is not None else f"no node has had room for it, which asks for {self._wants}"

    def _still_waits(self) -> None:
        log.warning("%s waits for a node that has room for it: it asks for %s", self._name, self._wants)
        self._placing = self._loop.call_later(max(self._place_s - TELL_S, 0.0), self._unplaced)

    def _unplaced(self) -> None:
        reason = f"no node of the cluster has had room for it within {self._place_s:g} s: it asks for {self._wants}"
        self._watch.heard(StartFailed(f"{self._name}: {reason}"))
        self._end(reason)

    def _end(self, reason: str) -> None:
        self._why = self._why or reason
        if not self._started:
            self._force()
        elif not self.gone.is_set() and not self._forced:
            self._spawn(self._ask("kill"))
            self._loop.call_later(KILL_S, self._force)

    def _force(self) -> None:
        """End the actor itself, which ends its children; hear of it, or no longer wait for that."""
        if self._forced or self.gone.is_set():
            return
        self._forced = True
        if self._actor is None or not self._started:
            self._living.cancel()  # an actor that nobody has a handle of is ended by Ray
            self._loop.call_soon(self._finally, self._why or "killed")
        else:
            self._spawn(self._kill_actor())
            self._loop.call_later(KILL_S, self._finally, self._why or "killed")

    def _finally(self, reason: str) -> None:
        if self.gone.is_set():
            return
        self.gone.set()
        if self._placing is not None:
            self._placing.cancel()
        self._unsent.clear()
        self._to_send.set()
        self._spawn(self._kill_actor())
        self._watch.exited(self._why or reason)

    async def _kill_actor(self) -> None:
        """Ray has let go of it when this returns."""
        try:
            if self._actor is not None:
                await clock.offload(lambda: self._ray.kill(self._actor))
        except Exception as error:
            log.debug("the actor of %s: %s", self._name, error)
        self.released = self.gone.is_set()

    async def _ask(self, method: str, *args: Any) -> None:
        try:
            await getattr(self._actor, method).remote(*args)
        except self._ray.exceptions.RayError as error:
            log.debug("replica %s did not %s: %s", self._name, method, error)

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _gone_within(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.gone.wait()
        except TimeoutError:
            pass


def _words(error: Exception) -> str:
    """What Ray says of an actor's end, on one line: the detail of its process's exit where it tells of one."""
    told = " ".join(str(error).split())
    _, found, detail = told.partition("Worker exit detail: ")
    detail = detail.partition(" Some common causes include")[0]
    return (detail if found else told)[:400]
