"""Plays a trace to a running app on the virtual clock: each request at its time, priced in blocks ahead of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Final

from foreserve.app import Running
from foreserve.core import Outcome, Request
from foreserve.dispatch.stream import Stream
from foreserve.engines.generation import Sized
from foreserve.services.foreseen import Foreseen
from foreserve.simulation.oracle import Oracle
from foreserve.simulation.twin import Twin
from foreserve.traces.row import TraceRow

BLOCK: Final = 256
"""Requests that are foreseen together, so that a model is asked once for all of them."""

BLOCK_S: Final = 10.0
"""Seconds of the trace that one block covers at most: what was learned meanwhile is missed for no longer."""


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
        self._running = running
        self._twins = twins
        self._oracle = oracle
        self._block_tokens = block_tokens
        self._before = before
        self._first = next(iter(twins))
        self._open = 0
        self._idle = asyncio.Event()
        running.observers.append(self._ended)

    async def play(self, rows: Iterator[TraceRow]) -> None:
        """Returns when every request of the trace has ended."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        held: list[TraceRow] = []
        while block := self._block(rows, held):
            if (due := start + block[0].arrival) > loop.time():
                await asyncio.sleep(due - loop.time())
            for row, payload, about in await self._foreseen(block):
                if (due := start + row.arrival) > loop.time():
                    await asyncio.sleep(due - loop.time())
                self.submit(row, payload, about)
        while self._open:
            self._idle.clear()
            await self._idle.wait()

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
            payloads = [twin.payload(row, self._block_tokens) for _, row in mine]
            abouts = await twin.about([row for _, row in mine], payloads)
            for (at, row), payload, about in zip(mine, payloads, abouts, strict=True):
                found[at] = (row, payload, about)
        return [found[at] for at in range(len(block))]

    def submit(self, row: TraceRow, payload: Sized, about: Foreseen) -> Stream:
        """One request, now."""
        now = asyncio.get_running_loop().time()
        service = row.service or self._first
        settings = self._twins[service].settings
        deadline_s = row.deadline_s if row.deadline_s is not None else settings.deadline_s
        request = Request(
            id=f"r{self.submitted}",
            service=service,
            payload=payload,
            arrival=now,
            deadline=None if deadline_s is None else now + deadline_s,
            utility=row.utility,
            tenant=row.tenant,
            about=about,
        )
        self.submitted += 1
        self._open += 1
        self._oracle.tell(request.id, row.output_tokens)
        if self._before is not None:
            self._before(request, row)
        return self._running.services[service].submit(request)

    def _ended(self, outcome: Outcome) -> None:
        self._oracle.forget(outcome.id)
        self._open -= 1
        if not self._open:
            self._idle.set()
