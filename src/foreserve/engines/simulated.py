"""An engine that takes time instead of computing: a cost model of prefill and decode, without weights.

Time is the running loop's, and nothing else is used, so a virtual loop runs hours of it in milliseconds. The model:

- Prefill comes first, one prompt after another, `prefill_s_per_token` each; decoding stands still meanwhile.
- A decode step of n sequences takes `decode_s + (n - 1) * decode_s_per_seq` and gives each of them one token. The first
  token comes with the end of the prefill.
- The KV cache holds prompts and what has been made of their answers. When it is full the newest sequence is preempted:
  it waits before all others and is prefilled anew, with what it has made, once there is room.
- A static batch is prefilled padded to its longest prompt and decoded to its longest output; every step costs the whole
  batch, which is the waste that batch policies try to avoid. When it outgrows the KV cache all its rows end with an
  error that says `{"retry": "memory"}`.

Events happen at joins, first tokens, asked-for chunks and ends: a token by itself costs nothing.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal

from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Work
from foreserve.engines.answer import Numbered, generate_of, refusal
from foreserve.engines.generation import Sized, TrueLengths
from foreserve.engines.profile import EngineProfile
from foreserve.engines.simulated_batch import SimulatedBatch
from foreserve.engines.simulated_sequence import SimulatedSequence, StepTimer, draw, resolve


class SimulatedEngine:
    """A cost model behind the engine protocol. Times are in seconds, lengths in tokens.

    `batching` is "continuous" or "static". `output_tokens=None` runs every request to its `max_tokens`; `(low, high)`
    draws its length evenly from that range by `seed` and the request's id, so that it is the same in every run and on
    every replica. `emit_every` is how many tokens make a chunk: `None` is the first token and then everything at the
    end, 1 is a stream. Token ids count up from the prompt's length and mean nothing; an answer that is continued
    elsewhere goes on as it would have here. A payload `{"seconds": x}` is work of another kind: it holds a slot for x
    seconds. `kv_tokens` is the size of the KV cache; who does not fit waits in order of arrival.
    """

    def __init__(
        self,
        *,
        slots: int = 16,
        kv_tokens: int = 65_536,
        batching: Literal["continuous", "static"] = "continuous",
        prefill_s_per_token: float = 0.0005,
        decode_s: float = 0.02,
        decode_s_per_seq: float = 0.001,
        start_s: float = 0.0,
        seed: int = 0,
        context_tokens: int = 8192,
        output_tokens: Sequence[int] | None = None,
        emit_every: int | None = None,
        profile: EngineProfile | None = None,
        lengths: TrueLengths | None = None,
    ) -> None:
        self._lengths = lengths
        if profile is not None:  # for now: its corners as straight lines
            slots, kv_tokens, batching = profile.slots, profile.kv_tokens, profile.batching
            context_tokens, start_s = profile.context_tokens, profile.start_s
            prefill_s_per_token = profile.prefill.seconds[-1][0] / profile.prefill.tokens[-1]
            first, last = profile.decode.seconds[0][0], profile.decode.seconds[-1][0]
            decode_s = first
            decode_s_per_seq = (last - first) / max(1, profile.decode.sequences[-1] - profile.decode.sequences[0])
        if batching not in ("continuous", "static"):
            raise ValueError(f"`batching` is {batching!r}; valid: continuous, static")
        if slots < 1 or kv_tokens < 1 or (emit_every is not None and emit_every < 1):
            raise ValueError("`slots`, `kv_tokens` and `emit_every` must be at least 1")
        if min(prefill_s_per_token, decode_s, decode_s_per_seq, start_s) < 0:
            raise ValueError("no time may be negative")
        if output_tokens is not None and not 1 <= output_tokens[0] <= output_tokens[1]:
            raise ValueError("`output_tokens` is [low, high] with 1 <= low <= high")
        self._slots = slots
        self._kv_tokens = kv_tokens
        self._batching = batching
        self._prefill_s = prefill_s_per_token
        self._decode_s = decode_s
        self._decode_s_per_seq = decode_s_per_seq
        self._start_s = start_s
        self._seed = seed
        self._context = context_tokens
        self._output = output_tokens
        self._emit_every = emit_every
        self._waiting: deque[SimulatedSequence] = deque()
        self._running: dict[str, SimulatedSequence] = {}
        self._due: list[tuple[int, int, SimulatedSequence]] = []  # (decode step, order, who) of the next chunk of each
        self._step = 0  # decode steps since the start
        self._order = 0
        self._batch: SimulatedBatch | None = None
        self.preemptions = 0
        """How often the KV cache was full, so that somebody's had to be computed again."""
        self._timed: dict[str, asyncio.Future[bool]] = {}  # works of the other kind that hold a slot
        self._timer = StepTimer()
        self._batch_turn = asyncio.Lock()
        self._loop_task: asyncio.Task[None] | None = None

    async def start(self) -> EngineInfo:
        """Ready after `start_s`."""
        if self._start_s:
            await asyncio.sleep(self._start_s)
        return EngineInfo(
            batching=self._batching,
            capacity={"slots": float(self._slots), "kv_tokens": float(self._kv_tokens)},
            features=("penalties", "seed", "ignore_eos"),
            facts={"context_tokens": min(self._context, self._kv_tokens), "weights": "none"},
        )

    # --- one request at a time: continuous batching

    async def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """See `Engine`."""
        if self._batching == "static" or _is_timed(work):
            async with aclosing(self.run_batch([work], plan)) as turns:
                async for chunks in turns:
                    for chunk in chunks:
                        yield chunk
            return
        sequence = self._sequence(work)
        if isinstance(sequence, Finish):
            yield Numbered(work).chunk(finish=sequence)
            return
        self._waiting.append(sequence)
        self._nudge()
        try:
            async for chunk in sequence.answer.chunks():
                yield chunk
        finally:
            self._leave(sequence)

    async def _run_seconds(self, works: Sequence[Work]) -> AsyncGenerator[Sequence[Chunk]]:
        """Works of the other kind, together: all take as long as the longest."""
        seconds = max(float(work.payload["seconds"]) for work in works)
        loop = asyncio.get_running_loop()
        over = {work.id: loop.create_future() for work in works}
        timers = [loop.call_later(seconds, resolve, future, True) for future in over.values()]
        self._timed.update(over)
        try:
            left = {work.id: work for work in works}
            while left:
                await asyncio.wait([over[id] for id in left], return_when=asyncio.FIRST_COMPLETED)
                ended = [work for work in left.values() if over[work.id].done()]
                for work in ended:
                    del left[work.id]
                yield [Numbered(work).chunk(finish=_timed_finish(over[work.id].result(), seconds)) for work in ended]
        finally:
            for timer, work in zip(timers, works, strict=True):
                timer.cancel()
                self._timed.pop(work.id, None)

    def _sequence(self, work: Work) -> SimulatedSequence | Finish:
        """What `work` will put out, or why it cannot run."""
        if isinstance(work.payload, Sized):
            sized = work.payload
            assert self._lengths is not None
            left = max(1, self._lengths.output_tokens(work.id) - sized.continued)
            output = min(left, sized.max_tokens)
            return SimulatedSequence(work, sized.prompt_tokens, output, left > sized.max_tokens, self._emit_every)
        payload = generate_of(work)
        if words := refusal(payload, min(self._context, self._kv_tokens)):
            return Finish(reason="rejected", error=words)
        output = payload.max_tokens
        if self._output is not None and not payload.ignore_eos:
            drawn = draw(self._seed, work.id, self._output[0], self._output[1])
            output = min(output, max(drawn - payload.continued, 1))
        return SimulatedSequence(work, len(payload.prompt), output, output == payload.max_tokens, self._emit_every)

    def _nudge(self) -> None:
        """Have the step loop look again."""
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.get_running_loop().create_task(self._steps())
        else:
            self._timer.interrupt()

    def _leave(self, sequence: SimulatedSequence) -> None:
        """The reader is gone, or has everything: free what it holds."""
        if not sequence.answer.ended:
            self._end(sequence, sequence.finish("cancelled"))
            self._nudge()

    def _end(self, sequence: SimulatedSequence, finish: Finish) -> None:
        sequence.cancelled = finish.reason == "cancelled"
        sequence.due = 0
        sequence.answer.end(finish)
        self._running.pop(sequence.work.id, None)
        if sequence.cancelled and sequence in self._waiting:
            self._waiting.remove(sequence)

    async def _steps(self) -> None:
        """Prefill who fits, else decode to the next event. Ends when there is nothing to do."""
        while self._waiting or self._running:
            if self._waiting and self._fits(self._waiting[0]):
                await self._prefill(self._waiting.popleft())
            else:
                await self._decode()

    def _fits(self, sequence: SimulatedSequence) -> bool:
        """Whether it can join, and everybody make one token more before somebody has to leave again."""
        if not self._running:
            return True
        needed = sequence.kv_tokens(self._step) + 1 + len(self._running)
        return len(self._running) < self._slots and self._used(self._step) + needed <= self._kv_tokens

    def _used(self, step: int) -> int:
        return sum(sequence.kv_tokens(step) for sequence in self._running.values())

    async def _prefill(self, sequence: SimulatedSequence) -> None:
        self._running[sequence.work.id] = sequence
        await asyncio.sleep((sequence.prompt + sequence.made) * self._prefill_s)
        if sequence.cancelled:
            return
        sequence.joined = self._step
        self._emit(sequence)

    async def _decode(self) -> None:
        """Run whole steps up to the next chunk of anybody, a full KV cache, or who comes or goes in between."""
        while self._due and self._due[0][1] != self._due[0][2].due:
            heapq.heappop(self._due)  # of one that was cancelled or preempted
        if not self._due:
            return
        room = (self._kv_tokens - self._used(self._step)) // len(self._running)
        if room < 1:
            self._preempt()
            return
        steps = min(self._due[0][0] - self._step, room)
        self._step += await self._timer.spend(steps, self._step_s(len(self._running)))
        while self._due and self._due[0][0] <= self._step:
            _, order, sequence = heapq.heappop(self._due)
            if sequence.due == order:
                self._emit(sequence)

    def _preempt(self) -> None:
        """The newest gives way. Whoever is alone always has room: prompt and answer fit the KV cache."""
        _, newest = self._running.popitem()
        newest.preempt(self._step)
        self._waiting.appendleft(newest)
        self.preemptions += 1

    def _step_s(self, n: int) -> float:
        return self._decode_s + max(0, n - 1) * self._decode_s_per_seq

    def _emit(self, sequence: SimulatedSequence) -> None:
        """Put out what has come, if a chunk is due, and note when the next one is."""
        reached = sequence.reached(self._step)
        if reached >= sequence.next_chunk:
            sequence.put_up_to(reached)
        if reached >= sequence.output:
            self._end(sequence, sequence.finish())
            return
        self._order += 1
        sequence.due = self._order
        heapq.heappush(self._due, (self._step + sequence.next_chunk - reached, self._order, sequence))

    # --- a batch at a time: static batching

    async def run_batch(self, works: Sequence[Work], plan: Any = None) -> AsyncGenerator[Sequence[Chunk]]:
        """See `Engine`. Each turn gives the chunks that one moment brings, in the order of `works`."""
        if _is_timed(works[0]):
            async with aclosing(self._run_seconds(works)) as turns:
                async for chunks in turns:
                    yield chunks
            return
        tried = [(work, self._sequence(work)) for work in works]
        rows = [row for _, row in tried if isinstance(row, SimulatedSequence)]
        if len(rows) < len(works):
            yield [Numbered(work).chunk(finish=why) for work, why in tried if isinstance(why, Finish)]
        async with self._batch_turn, aclosing(self._run_rows(rows)) as turns:
            async for chunks in turns:
                yield chunks

    async def _run_rows(self, rows: list[SimulatedSequence]) -> AsyncGenerator[Sequence[Chunk]]:
        ids = [row.work.id for row in rows]
        self._running.update(zip(ids, rows, strict=True))
        self._batch = SimulatedBatch(rows, self._kv_tokens)
        try:
            async with aclosing(self._batch.run(self._prefill_s, self._step_s(len(rows)), self._timer)) as turns:
                async for chunks in turns:
                    yield chunks
        finally:
            self._batch = None
            for id in ids:
                self._running.pop(id, None)

    # --- the rest of the protocol

    async def cancel(self, request_id: str) -> None:
        """See `Engine`. A waiting or running request ends now; a static batch drops the row at its next chunk."""
        if request_id in self._timed:
            resolve(self._timed[request_id], False)
        sequence = self._running.get(request_id) or next((s for s in self._waiting if s.work.id == request_id), None)
        if sequence is None:
            return
        if self._batching == "static":
            sequence.cancelled = True
            self._timer.interrupt()
        elif not sequence.answer.ended:
            self._end(sequence, sequence.finish("cancelled"))
            self._nudge()

    async def load(self) -> EngineLoad:
        """See `Engine`."""
        used = self._batch.kv_tokens if self._batch else self._used(self._step + self._timer.under_way)
        return EngineLoad(
            running=len(self._running) + len(self._timed),
            waiting=len(self._waiting),
            kv_fraction=used / self._kv_tokens,
            last_step_s=self._step_s(len(self._running)) if self._running else None,
        )

    async def close(self) -> None:
        """End what runs as cancelled."""
        for sequence in [*self._running.values(), *self._waiting]:
            self._end(sequence, sequence.finish("cancelled"))
        for future in self._timed.values():
            resolve(future, False)
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)


def _is_timed(work: Work) -> bool:
    return isinstance(work.payload, Mapping) and "seconds" in work.payload


def _timed_finish(completed: bool, seconds: float) -> Finish:
    return Finish(reason="stop", usage={"seconds": seconds}) if completed else Finish(reason="cancelled")
