"""One run: requests sent as they fall due, within limits, and everything that was measured of them.

A run always ends: sending stops at a count or a time, every attempt has its timeout, and what still runs after the
drain limit is cancelled and counted as abandoned.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from foreserve import clock
from foreserve.errors import ConfigError
from foreserve.loadgen.arrivals import Arrival, ClosedLoop
from foreserve.loadgen.client import Client
from foreserve.loadgen.prompts import Prompt
from foreserve.loadgen.records import Ending, Recording, Result

PROGRESS_S = 0.1


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of a run: how many requests, how long it sends, how long it then waits, how many run at once."""

    requests: int = 100
    duration_s: float = 3600.0
    drain_s: float = 120.0
    max_in_flight: int = 1024

    def __post_init__(self) -> None:
        for name in ("requests", "max_in_flight"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.duration_s > 0:
            raise ConfigError(f"duration is {self.duration_s} s; it must be above 0")
        if not self.drain_s >= 0:
            raise ConfigError(f"drain is {self.drain_s} s; it must be at least 0")


class Progress(msgspec.Struct, frozen=True):
    """How far a run is."""

    elapsed_s: float
    sent: int
    ended: int
    done: int

    @property
    def in_flight(self) -> int:
        return self.sent - self.ended


class Run(msgspec.Struct, frozen=True):
    """What came of it. `sending_s` is how long it sent.

    `unsent` requests fell due while `max_in_flight` others ran and were not sent before the end. `interrupted` is true
    when `stop` ended it.
    """

    results: list[Result]
    sending_s: float
    unsent: int
    interrupted: bool


async def run(
    client: Client,
    prompts: Sequence[Prompt],
    arrivals: Iterable[Arrival] | ClosedLoop,
    limits: Limits,
    *,
    trace_lengths: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
) -> Run:
    """Send `prompts` in turn, from the first again when they are used up, until a limit is reached.

    `stop` ends it at once: what runs is cancelled, what was measured stands. With `trace_lengths` an arrival's
    `output_tokens` are the request's `max_tokens`. `on_progress` is called ten times a second and at the end. Raises
    ConfigError for a prompt that the endpoint cannot take.
    """
    for prompt in prompts:
        client.body(prompt)
    times = arrivals if isinstance(arrivals, ClosedLoop) else iter(arrivals)
    return await _Runner(client, prompts, limits, trace_lengths).go(times, on_progress, stop or asyncio.Event())


class _Runner:
    def __init__(self, client: Client, prompts: Sequence[Prompt], limits: Limits, trace_lengths: bool) -> None:
        self.client = client
        self.prompts = prompts
        self.limits = limits
        self.trace_lengths = trace_lengths
        self.results: list[Result] = []
        self.running: set[asyncio.Task[None]] = set()
        self.closing = asyncio.Event()
        self.failure: BaseException | None = None
        self.blocked: Arrival | None = None
        self.sent = 0
        self.done = 0
        self.start = 0.0

    async def go(
        self,
        arrivals: Iterator[Arrival] | ClosedLoop,
        on_progress: Callable[[Progress], None] | None,
        stop: asyncio.Event,
    ) -> Run:
        self.start = clock.precise()
        send = self._send_closed(arrivals) if isinstance(arrivals, ClosedLoop) else self._send_open(arrivals)
        sender = asyncio.create_task(send)
        helpers: list[asyncio.Task[Any]] = [asyncio.create_task(event.wait()) for event in (stop, self.closing)]
        ticker = asyncio.create_task(self._tick(on_progress)) if on_progress is not None else None
        try:
            await asyncio.wait({sender, *helpers}, timeout=self.limits.duration_s, return_when=asyncio.FIRST_COMPLETED)
            sending_s = self._elapsed()
            self.closing.set()
            unsent = 0
            if sender.done():
                sender.result()
            elif not isinstance(arrivals, ClosedLoop):
                unsent = self._unsent(arrivals, sending_s)
            await self._cancel({sender})
            helpers.append(asyncio.create_task(self._idle()))
            await asyncio.wait(
                {helpers[0], helpers[-1]}, timeout=self.limits.drain_s, return_when=asyncio.FIRST_COMPLETED
            )
            await self._cancel(self.running)
        finally:
            await self._cancel({sender, *helpers, *self.running} | ({ticker} if ticker is not None else set()))
        if self.failure is not None:
            raise self.failure
        if on_progress is not None:
            on_progress(self._progress())
        self.results.sort(key=lambda result: result.index)
        return Run(self.results, sending_s, unsent, stop.is_set())

    # --- sending ---------------------------------------------------------------------------------------

    async def _send_open(self, arrivals: Iterator[Arrival]) -> None:
        room = asyncio.Semaphore(self.limits.max_in_flight)
        for arrival in arrivals:
            self.blocked = arrival
            await asyncio.sleep(max(0.0, arrival.at - self._elapsed()))
            await room.acquire()
            self.blocked = None
            self._start(self._one(arrival.at, arrival.output_tokens)).add_done_callback(lambda _: room.release())
            if self.sent == self.limits.requests:
                return

    async def _send_closed(self, loop: ClosedLoop) -> None:
        async def client() -> None:
            while self.sent < self.limits.requests and not self.closing.is_set():
                await self._one(self._elapsed(), None)

        clients = min(loop.clients, self.limits.requests)
        await asyncio.wait([self._start(client()) for _ in range(clients)])

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.failure = self.failure or task.exception()
            self.closing.set()

    def _one(self, due: float, output_tokens: int | None) -> Coroutine[None, None, None]:
        """The request that is next in number, counted at once: many may be started before the first one runs."""
        index = self.sent
        self.sent += 1
        prompt = self.prompts[index % len(self.prompts)]
        body = self.client.body(prompt, output_tokens if self.trace_lengths else None)
        return self._record(body, Recording(index, due, prompt.tenant))

    async def _record(self, body: bytes, recording: Recording) -> None:
        ending = Ending.ABANDONED
        try:
            ending = await self.client.send(body, recording, self.start)
        finally:
            self.done += ending is Ending.DONE
            self.results.append(recording.result(ending, self._elapsed()))

    async def _idle(self) -> None:
        while self.running:
            await asyncio.wait(self.running)

    def _unsent(self, arrivals: Iterator[Arrival], sending_s: float) -> int:
        if self.blocked is None or self.blocked.at > sending_s:
            return 0
        left = itertools.islice(arrivals, self.limits.requests - self.sent - 1)
        return 1 + sum(1 for _ in itertools.takewhile(lambda arrival: arrival.at <= sending_s, left))

    # --- round it --------------------------------------------------------------------------------------

    def _elapsed(self) -> float:
        return clock.precise() - self.start

    def _progress(self) -> Progress:
        return Progress(self._elapsed(), self.sent, len(self.results), self.done)

    async def _tick(self, on_progress: Callable[[Progress], None]) -> None:
        while True:
            on_progress(self._progress())
            await asyncio.sleep(PROGRESS_S)

    async def _cancel(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        tasks = set(tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
