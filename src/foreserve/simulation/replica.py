"""A simulated replica as its launcher hands it out: a worker's side of the messages, on timers alone.

What it sends arrives when it is sent, or in the loop's next turn where that would reach into the middle of a caller.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from itertools import zip_longest

import msgspec

from foreserve.core import Chunk, EngineLoad, EngineSpec, Finish, Work
from foreserve.engines.simulated_core import SimulatedCore
from foreserve.fleet.watch import Watch
from foreserve.messages import (
    Abort,
    Chunks,
    Credit,
    Drain,
    Drained,
    Exit,
    Feed,
    FromWorker,
    Heartbeat,
    Ready,
    Run,
    StartFailed,
    ToWorker,
)  # fmt: skip
from foreserve.ports import Listener
from foreserve.runtime.factory import in_words, load_factory, make
from foreserve.simulation.beats import Beats
from foreserve.simulation.credit import CreditGate


class SimulatedConnection:
    """Implements `ports.Connection`. `kill`, `slow`, `mute`, `freeze` and `delay` are how it goes wrong, on purpose."""

    pid: int | None = None

    def __init__(
        self,
        name: str,
        spec: EngineSpec,
        listener: Listener,
        beats: Beats,
        start_s: float | None,
        on_gone: Callable[[SimulatedConnection], None],
    ) -> None:
        self.name = name
        self.gone = asyncio.Event()
        self.changed: Callable[[SimulatedConnection], None] | None = None
        """Told whenever it may hold more or less than before, becomes ready, or is gone. For statistics alone."""
        self._spec = spec
        self._beats = beats
        self._start_s = start_s
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._watch = Watch(spec, listener, self._end)
        self._core: SimulatedCore | None = None
        self._ready = self._draining = self._ending = False
        self._why = ""
        self._delay_s = 0.0
        self._factor = 1.0
        self._muted = self._frozen = False
        self._held: list[FromWorker] = []
        self._held_last = 0
        self._slots = 0
        self._told = EngineLoad()
        self._credit = CreditGate()
        self._out: list[Chunk] = []
        self._flush: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._at: float | None = None  # when it is set for

    # --- Connection

    def send(self, message: ToWorker) -> None:
        """See `Connection.send`."""
        if self._ending:
            return
        match message:
            case Run():
                self._run(message.works)
            case Abort():
                self._abort(message)
            case Credit():
                self._put(self._credit.give(message.id, message.n))
            case Drain():
                self._draining = True
                self._loop.call_soon(self._drained)
            case Exit():
                self._end("exited")
            case Feed() if self._ready:
                self._feed(message)

    async def stop(self, grace_s: float) -> None:
        """End it. Returns when it is gone."""
        self._end("stopped")
        await self.gone.wait()

    def kill(self) -> None:
        """End as a killed process does. The tokens made by now have been given out, as they would have been live."""
        self._end("killed")

    # --- what goes wrong on purpose

    def slow(self, factor: float) -> None:
        """Steps take `factor` times as long as the profile says, from the next one on. Above 0."""
        self._factor = factor
        if self._core is not None and not self._ending:
            self._put(self._core.advance(self._loop.time()))
            self._core.slow(factor, self._loop.time())
            self._arm()

    def mute(self, on: bool) -> None:
        """Nothing it sends arrives; once it is heard again, all but heartbeats arrive late, and then one of those."""
        if on and self._ready and not self._ending:
            self.beat()  # a worker beats every second, also while it is idle: silence begins now
        self._muted = on
        if not on and not self._ending:
            held, self._held = self._held, []
            for message in held:
                self._tell(message)
            if self._ready:
                self.beat()

    def freeze(self, on: bool) -> None:
        """Its heartbeats repeat the load that they told last."""
        self._frozen = on

    def delay(self, seconds: float) -> None:
        """Add to its start time. Before it starts alone."""
        self._delay_s += seconds

    # --- its start

    def start(self) -> None:
        """Make the engine in the loop's next turn."""
        self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        if self._ending:
            return
        try:
            core: SimulatedCore = make(load_factory, self._spec.factory, self._spec.options).core
        except Exception as error:
            reason = in_words(self._spec.factory, error)
            self._tell(StartFailed(reason))
            self._end(f"the engine did not start: {reason}")
            return
        if self._factor != 1.0:
            core.slow(self._factor, self._loop.time())
        self._core = core
        start_s = core.profile.start_s if self._start_s is None else self._start_s
        if start_s + self._delay_s > 0.0:
            self._timer = self._loop.call_later(start_s + self._delay_s, self._become_ready)
        else:
            self._become_ready()

    def _become_ready(self) -> None:
        assert self._core is not None
        self._timer = None
        self._ready = True
        info = self._core.info()
        self._slots = int(info.capacity["slots"])
        self._changed()
        self._tell(Ready(info, os.getpid()))
        self._beats.add(self)

    # --- work

    def _run(self, works: Sequence[Work]) -> None:
        core = self._core
        if core is None or not self._ready or self._draining:
            words = "this replica is draining and takes no new work" if self._draining else "the engine is not ready"
            self._put([_refused(work, words) for work in works])
            return
        now = self._loop.time()
        self._put(core.advance(now))
        self._put(core.run([work for work in works if self._takes(core, work)], now))
        self._beats.add(self)
        self._arm()

    def _takes(self, core: SimulatedCore, work: Work) -> bool:
        there = core.attempt(work.id)
        if there is not None:
            if there != work.attempt:
                self._put([_refused(work, f"attempt {there} of this request still runs here")])
            return False
        if work.credits is not None:
            if core.static:
                words = "this engine runs batches, which go at one pace: `credits` are for continuous engines"
                self._put([_refused(work, words)])
                return False
            self._credit.add(work.id, work.credits)
        return True

    def _abort(self, message: Abort) -> None:
        core = self._core
        if core is None:
            return
        now = self._loop.time()
        self._put(core.advance(now))
        for request_id, attempt in zip_longest(message.ids, message.attempts[: len(message.ids)]):
            if attempt is None or core.attempt(request_id) == attempt:
                self._put(core.cancel(request_id, now))
                self._put(self._credit.cancel(request_id))
        self._arm()

    def _feed(self, message: Feed) -> None:
        assert self._core is not None
        finish = Finish(reason="rejected", error="this engine takes no prompt that is still growing")
        now = self._loop.time()
        self._put(self._core.advance(now))
        self._put([msgspec.structs.replace(end, finish=finish) for end in self._core.cancel(message.id, now)])
        self._arm()

    def _arm(self) -> None:
        """Have the next event happen at its time."""
        assert self._core is not None
        if self._core.holds != self._held_last:
            self._held_last = self._core.holds
            self._changed()
        at = self._core.next_at()
        if self._timer is not None:
            if at == self._at:
                return
            self._timer.cancel()
        self._at = at
        self._timer = None if at is None else self._loop.call_at(at, self._tick, at)

    def _tick(self, at: float) -> None:
        self._timer = None
        if self._core is None or self._ending:
            return
        chunks = self._core.advance(max(at, self._loop.time()))
        if chunks:
            self._out += self._credit.pass_on(chunks) if self._credit.any else chunks
            self._send_out()
        if not self._ending:
            self._arm()

    # --- what it says

    def _put(self, chunks: Sequence[Chunk]) -> None:
        """Say it in the loop's next turn: whoever is calling is in the middle of something."""
        if not chunks:
            return
        if self._flush is None:
            self._flush = self._loop.call_soon(self._send_out)
        self._out += self._credit.pass_on(chunks) if self._credit.any else chunks

    def _send_out(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if self._out:
            out, self._out = self._out, []
            self._tell(Chunks(tuple(out)))
            if self._draining:
                self._drained()

    def _drained(self) -> None:
        if not self._ending and not self._out and (self._core is None or self._core.idle):
            self._tell(Drained())

    def _tell(self, message: FromWorker) -> None:
        if self._muted:
            if not isinstance(message, Heartbeat):
                self._held.append(message)
        else:
            self._watch.heard(message)

    @property
    def preemptions(self) -> int:
        """How often its KV cache was full, so that somebody's had to be computed again. For statistics alone."""
        return 0 if self._core is None else self._core.preemptions

    @property
    def slots(self) -> int:
        """Its slots once it is ready and until it ends, else 0. For statistics alone."""
        return self._slots if self._ready and not self._ending else 0

    @property
    def holds(self) -> int:
        """How many requests it was given and has not ended. For statistics alone."""
        return 0 if self._core is None or self._ending else self._core.holds

    @property
    def ending(self) -> bool:
        """Whether it is ending or gone."""
        return self._ending

    def _changed(self) -> None:
        if self.changed is not None:
            self.changed(self)

    @property
    def busy(self) -> bool:
        """See `Beating`."""
        return self._core is not None and not self._core.idle

    def beat(self) -> None:
        """See `Beating`."""
        assert self._core is not None
        if not self._frozen:
            now = self._loop.time()
            self._put(self._core.advance(now))
            self._told = self._core.load(now)
        self._tell(Heartbeat(self._told))

    # --- its end

    def _end(self, reason: str) -> None:
        """End in the loop's next turn, for the first reason there was."""
        if self._ending:
            return
        self._ending = True
        self._changed()
        self._why = reason
        self._beats.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._core is not None and self._ready:
            now = self._loop.time()
            self._put([*self._core.advance(now), *self._core.progress(now)])
        self._loop.call_soon(self._leave)

    def _leave(self) -> None:
        self._send_out()
        self._on_gone(self)
        self._watch.exited(self._why)
        self.gone.set()


def _refused(work: Work, words: str) -> Chunk:
    return Chunk(id=work.id, index=0, attempt=work.attempt, finish=Finish(reason="rejected", error=words))
