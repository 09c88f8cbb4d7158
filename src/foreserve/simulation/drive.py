"""Plays a trace to a running app on the virtual clock: each request at its time, priced in blocks ahead of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, Protocol

from foreserve.core import Outcome, Request
from foreserve.dispatch.stream import Stream
from foreserve.engines.generation import Sized
from foreserve.running import Running
from foreserve.services.foreseen import Foreseen
from foreserve.simulation.oracle import Oracle
from foreserve.simulation.twin import Twin
from foreserve.traces.row import TraceRow

BLOCK: Final = 256
"""Requests that are foreseen together, so that a model is asked once for all of them."""

BLOCK_S: Final = 10.0
"""Seconds of the trace that one block covers at most: what was learned meanwhile is missed for no longer."""


class Clients(Protocol):
    """What clients do beside asking: some leave, some come again."""

    def asked(self, request: Request, row: TraceRow, stream: Stream) -> None:
        """A request was submitted just now. It may have ended already."""
        ...


class Drive:
    """Submits the rows of a trace. `before` is called with each request that is about to be submitted and its row.

    Rows that name no service go to the first; those that name one that is not there are a KeyError.
    """

    def __init__(
        self,
        running: Running,
        twins: Mapping[str, Twin],
        oracle: Oracle,
        *,
        block_tokens: int,
        before: Callable[[Request, TraceRow], None] | None = None,
    ) -> None:
        self.submitted = 0
        self.clients: Clients | None = None
        self.over: list[Callable[[], None]] = []
        """Called once, when all that was submitted has ended and nobody comes again."""
        self._coming_again = 0
        self._running = running
        self._twins = twins
        self._oracle = oracle
        self._block_tokens = block_tokens
        self._before = before
        self._first = next(iter(twins))
        self._open: set[str] = set()
        self._idle = asyncio.Event()
        running.observers.append(self._ended)

    async def play(self, rows: Iterator[TraceRow]) -> None:
        """Returns when every request of the trace has ended, and those that came again."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        held: list[TraceRow] = []
        while block := self._block(rows, held):
            if (due := start + block[0].arrival) > loop.time():
                await asyncio.sleep(due - loop.time())
            await self._submit_all(await self._foreseen(block), start)
        while self._open or self._coming_again:
            self._idle.clear()
            await self._idle.wait()
        for tell in self.over:
            tell()

    async def _submit_all(self, block: Sequence[tuple[TraceRow, Sized, Foreseen]], start: float) -> None:
        """Each at its time, by a timer for the next one: a turn of a task would cost several times as much."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        coming = iter(block)
        timer: asyncio.TimerHandle | None = None

        def come(row: TraceRow, payload: Sized, about: Foreseen) -> None:
            nonlocal timer
            try:
                self.submit(row, payload, about)
                for row, payload, about in coming:
                    if (due := start + row.arrival) > loop.time():
                        timer = loop.call_at(due, come, row, payload, about)
                        return
                    self.submit(row, payload, about)
            except Exception as error:
                over.set_exception(error)
            else:
                over.set_result(None)

        row, payload, about = next(coming)
        timer = loop.call_at(start + row.arrival, come, row, payload, about)
        try:
            await over
        finally:
            timer.cancel()

    def comes_again(self, row: TraceRow, request: Request, request_id: str, after_s: float) -> asyncio.TimerHandle:
        """Submit a request once more under another id, `after_s` seconds from now, as it was asked and foreseen."""
        self._coming_again += 1
        return asyncio.get_running_loop().call_later(after_s, self._again, row, request, request_id)

    def _again(self, row: TraceRow, request: Request, request_id: str) -> None:
        self._coming_again -= 1
        self.submit(row, request.payload, request.about, request_id)

    def _block(self, rows: Iterator[TraceRow], held: list[TraceRow]) -> list[TraceRow]:
        """The next rows that are foreseen together. `held` has the one that was read and not used."""
        block = [*held, *islice(rows, 1 - len(held))]
        held.clear()
        if not block:
            return block
        for row in rows:
            if row.arrival - block[0].arrival > BLOCK_S or len(block) == BLOCK:
                held.append(row)
                break
            block.append(row)
        return block

    async def _foreseen(self, block: list[TraceRow]) -> list[tuple[TraceRow, Sized, Foreseen]]:
        found: dict[int, tuple[TraceRow, Sized, Foreseen]] = {}
        for name, twin in self._twins.items():
            mine = [(at, row) for at, row in enumerate(block) if (row.service or self._first) == name]
            if not mine:
                continue
            payloads = [twin.payload(row, self._block_tokens) for _, row in mine]
            abouts = await twin.about([row for _, row in mine], payloads)
            for (at, row), payload, about in zip(mine, payloads, abouts, strict=True):
                found[at] = (row, payload, about)
        return [found[at] for at in range(len(block))]

    def submit(self, row: TraceRow, payload: Sized, about: Foreseen, request_id: str | None = None) -> Stream:
        """One request, now."""
        now = asyncio.get_running_loop().time()
        service = row.service or self._first
        settings = self._twins[service].settings
        deadline_s = row.deadline_s if row.deadline_s is not None else settings.deadline_s
        request = Request(
            id=f"r{self.submitted}" if request_id is None else request_id,
            service=service,
            payload=payload,
            arrival=now,
            deadline=None if deadline_s is None else now + deadline_s,
            utility=row.utility,
            tenant=row.tenant,
            about=about,
        )
        self.submitted += request_id is None
        self._open.add(request.id)
        self._oracle.tell(request.id, row.output_tokens)
        if self._before is not None:
            self._before(request, row)
        stream = self._running.services[service].submit(request)
        if self.clients is not None:
            self.clients.asked(request, row, stream)
        return stream

    def _ended(self, outcome: Outcome) -> None:
        self._oracle.forget(outcome.id)
        self._open.discard(outcome.id)
        if not self._open:
            self._idle.set()
