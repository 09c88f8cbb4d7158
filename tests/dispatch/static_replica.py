"""A replica that runs one batch at a time, padded, in a bounded memory: the static regime on the virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from foreserve.core import Chunk, Cost, Finish, Work
from foreserve.ports import Room
from tests.dispatch.harness import House, Tale

STEP_S = 0.1


class StaticReplica:
    """Tells tales, a letter of each a step; all rows end once `rows * (longest prompt + step)` exceeds `kv_tokens`.

    `fails(batch number, step)` injects a memory that ends early.
    """

    def __init__(
        self,
        name: str,
        house: House,
        slots: int = 8,
        kv_tokens: int = 1000,
        fails: Callable[[int, int], bool] = lambda batch, step: False,
    ) -> None:
        self.name = name
        self.slots = slots
        self.kv_tokens = kv_tokens
        self.batches: list[tuple[str, ...]] = []
        self.plans: list[Any] = []
        self.failures = 0
        self._fails = fails
        self._house = house
        self._held: dict[str, Work] = {}
        self._next: dict[str, int] = {}
        self._longest = 0
        self._rows = 0
        house.dispatcher.attach(self)

    def capacity(self) -> Cost:
        return {"slots": float(self.slots), "kv_tokens": float(self.kv_tokens)}

    def room(self) -> Room | None:
        if self._held:
            return None
        free = dict(self.capacity())
        return Room(replica=self.name, free=free, capacity=free, running=0)

    def run(self, works: Sequence[Work], plan: Any) -> None:
        assert not self._held
        self.batches.append(tuple(work.id for work in works))
        self.plans.append(plan)
        self._held = {work.id: work for work in works}
        self._next = dict.fromkeys(self._held, 0)
        self._rows = len(works)
        self._longest = max(work.forecast.input_tokens if work.forecast else 0 for work in works)
        self._later(1)

    def _later(self, step: int) -> None:
        asyncio.get_running_loop().call_later(STEP_S, self._step, step)

    def _step(self, step: int) -> None:
        full = self._rows * (self._longest + step) > self.kv_tokens or self._fails(len(self.batches), step)
        chunks = []
        for work in list(self._held.values()):
            tale: Tale = work.payload
            told = tale.told + step
            if full and self._rows > 1:
                chunks.append(self._chunk(work, None, Finish(reason="error", error="", detail={"retry": "memory"})))
            elif full:
                chunks.append(self._chunk(work, None, Finish(reason="length")))
            else:
                finish = Finish(reason="stop") if told >= len(tale.text) else None
                chunks.append(self._chunk(work, tale.text[told - 1], finish))
        self.failures += full
        if self._held:
            self._later(step + 1)
        if chunks:
            self._house.dispatcher.chunks(self, chunks)

    def _chunk(self, work: Work, data: Any, finish: Finish | None) -> Chunk:
        index = self._next[work.id]
        self._next[work.id] += 1
        if finish is not None:
            del self._held[work.id]
        return Chunk(id=work.id, index=index, data=data, attempt=work.attempt, finish=finish)

    def abort(self, ids: Sequence[str]) -> None:
        for request_id in ids:
            if (work := self._held.get(request_id)) is not None:
                chunk = self._chunk(work, None, Finish(reason="cancelled"))
                asyncio.get_running_loop().call_soon(self._house.dispatcher.chunks, self, [chunk])
