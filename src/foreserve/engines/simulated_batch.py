"""The simulated engine's static batch: every step costs all its places, and memory is padded to the longest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from foreserve.core import Chunk
from foreserve.engines.simulated_sequence import SimulatedSequence, StepTimer


class SimulatedBatch:
    """Rows that run together until the longest has ended, or until `kv_tokens` hold no further step of them all."""

    def __init__(self, rows: Sequence[SimulatedSequence], kv_tokens: int) -> None:
        self._rows = list(rows)
        self._places = len(rows)
        self._longest = max((row.prompt for row in rows), default=0)
        self._last = kv_tokens // max(self._places, 1) - self._longest
        """The last step that has room."""
        self._step = 0

    @property
    def kv_tokens(self) -> int:
        """What it holds of the KV cache."""
        return self._places * (self._longest + self._step)

    async def run(self, prefill_s: float, step_s: float, timer: StepTimer) -> AsyncGenerator[Sequence[Chunk]]:
        """Its chunks, those of one moment together: `prefill_s` for each prompt token, `step_s` for each step."""
        await asyncio.sleep(self._longest * self._places * prefill_s)
        rows, self._step = self._rows, 1
        while rows:
            if self._step > self._last:
                yield [row.chunk_at(self._last) if row.cancelled else row.out_of_memory(self._last) for row in rows]
                return
            due = [row for row in rows if row.cancelled or row.next_chunk <= self._step]
            if due:
                yield [row.chunk_at(self._step) for row in due]
            rows = [row for row in rows if not row.answer.ended]
            if rows:
                until = min(self._last + 1, *(row.next_chunk for row in rows))
                self._step += await timer.spend(until - self._step, step_s)
