"""An engine that takes time instead of computing: a measured or assumed profile, without weights.

Time is the running loop's, and nothing else is used, so a virtual loop runs hours of it in milliseconds. How it goes
about its work is in `simulated_steps` (continuous batching) and `simulated_static` (static batches). Events happen at
joins, first tokens, asked-for chunks and ends: a token by itself costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal

import msgspec

from foreserve.core import Chunk, EngineInfo, EngineLoad, Work
from foreserve.engines.generation import TrueLengths
from foreserve.engines.profile import EngineProfile, checked, linear, load_profile
from foreserve.engines.simulated_core import SimulatedCore


class SimulatedEngine:
    """A cost model behind the engine protocol. Times are in seconds, lengths in tokens.

    `profile` is an `EngineProfile`, one as plain values, or the path of a YAML or JSON file of one; `slots` and
    `context_tokens` then lower its own. Without, the plain options make one of straight lines (see `profile.linear`):
    a prompt token takes `prefill_s_per_token`, decoding stands still meanwhile, and a step of n sequences takes
    `decode_s + (n - 1) * decode_s_per_seq`.

    `output_tokens=None` runs every request to its `max_tokens`; `(low, high)` draws its length evenly from that range
    by `seed` and the request's id, so that it is the same in every run and on every replica. `emit_every` is how many
    tokens make a chunk: `None` is the first token and then everything at the end, 1 is a stream. Token ids count up
    from the prompt's length and mean nothing; an answer that is continued elsewhere goes on as it would have here. A
    `Sized` payload's length is asked of `lengths`, and its tokens are only counted. A payload `{"seconds": x}` is work
    of another kind: it holds a slot for x seconds.

    `capacity` is what it says that it may hold, in place of the profile's slots and KV tokens: an engine that stands
    for a server tells no more than that one does, and has what comes beyond its slots wait.
    """

    def __init__(
        self,
        *,
        slots: int | None = None,
        kv_tokens: int | None = None,
        batching: Literal["continuous", "static"] | None = None,
        prefill_s_per_token: float | None = None,
        decode_s: float | None = None,
        decode_s_per_seq: float | None = None,
        start_s: float | None = None,
        seed: int = 0,
        context_tokens: int | None = None,
        output_tokens: Sequence[int] | None = None,
        emit_every: int | None = None,
        profile: EngineProfile | Mapping[str, Any] | str | None = None,
        lengths: TrueLengths | None = None,
        capacity: Mapping[str, float] | None = None,
    ) -> None:
        plain = {
            "slots": slots,
            "kv_tokens": kv_tokens,
            "batching": batching,
            "prefill_s_per_token": prefill_s_per_token,
            "decode_s": decode_s,
            "decode_s_per_seq": decode_s_per_seq,
            "start_s": start_s,
            "context_tokens": context_tokens,
        }
        if emit_every is not None and emit_every < 1:
            raise ValueError("`emit_every` must be at least 1")
        if output_tokens is not None and not 1 <= output_tokens[0] <= output_tokens[1]:
            raise ValueError("`output_tokens` is [low, high] with 1 <= low <= high")
        self.core = SimulatedCore(
            _profile(profile, {name: value for name, value in plain.items() if value is not None}),
            seed=seed,
            output_tokens=output_tokens,
            emit_every=emit_every,
            lengths=lengths,
            capacity=capacity,
        )
        """The engine itself, without a clock."""
        self._readers: dict[str, _Reader] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> EngineInfo:
        """Ready after the profile's `start_s`."""
        if self.core.profile.start_s:
            await asyncio.sleep(self.core.profile.start_s)
        return self.core.info()

    async def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """See `Engine`."""
        async with aclosing(self.run_batch([work], plan)) as turns:
            async for chunks in turns:
                for chunk in chunks:
                    yield chunk

    async def run_batch(self, works: Sequence[Work], plan: Any = None) -> AsyncGenerator[Sequence[Chunk]]:
        """See `Engine`. Each turn gives the chunks that one moment brings, in the order of `works`."""
        reader = _Reader(works)
        now = self._catch_up()
        self._readers.update((work.id, reader) for work in works)
        self._hand_out(self.core.run(works, now))
        self._arm()
        try:
            while reader.left:
                yield await reader.next()
        finally:
            for request_id in list(reader.left):
                if self._readers.pop(request_id, None) is not None:
                    await self.cancel(request_id)

    async def cancel(self, request_id: str) -> None:
        """See `Engine`. A waiting or running request ends now; a static batch drops the row with its present step."""
        now = self._catch_up()
        self._hand_out(self.core.cancel(request_id, now))
        self._arm()

    async def load(self) -> EngineLoad:
        """See `Engine`."""
        return self.core.load(self._catch_up())

    @property
    def preemptions(self) -> int:
        """How often the KV cache was full, so that somebody's had to be computed again."""
        return self.core.preemptions

    async def close(self) -> None:
        """End what runs as cancelled."""
        self._catch_up()
        self._hand_out(self.core.close())
        if self._timer is not None:
            self._timer.cancel()

    # ---

    def _catch_up(self) -> float:
        """Bring the model to the present. Returns what time it is there."""
        now = asyncio.get_running_loop().time()
        self._hand_out(self.core.advance(now))
        return now

    def _arm(self) -> None:
        at = self.core.next_at()
        if self._timer is not None:
            if self._timer.when() == at:
                return
            self._timer.cancel()
        self._timer = None if at is None else asyncio.get_running_loop().call_at(at, self._tick, at)

    def _tick(self, at: float) -> None:
        """The timer's time has come: a live loop's clock may be some fraction of a millisecond short of it."""
        self._timer = None
        self._hand_out(self.core.advance(max(at, asyncio.get_running_loop().time())))
        self._arm()

    def _hand_out(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            reader = self._readers.get(chunk.id)
            if reader is not None:
                reader.put(chunk)
                if chunk.finish is not None:
                    del self._readers[chunk.id]


class _Reader:
    """Who reads the answers of one call. What waits unread is bounded by the requests' `max_tokens`."""

    def __init__(self, works: Sequence[Work]) -> None:
        self.left = {work.id: None for work in works}
        """Whose last chunk has not been read."""
        self._chunks: list[Chunk] = []
        self._news = asyncio.Event()

    def put(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        self._news.set()

    async def next(self) -> list[Chunk]:
        """Everything that has come since the last call."""
        await self._news.wait()
        self._news.clear()
        chunks, self._chunks = self._chunks, []
        for chunk in chunks:
            if chunk.finish is not None:
                del self.left[chunk.id]
        return chunks


def _profile(given: EngineProfile | Mapping[str, Any] | str | None, plain: dict[str, Any]) -> EngineProfile:
    """The profile that was given, its bounds lowered to the plain options, or one of these options alone."""
    if given is None:
        return linear(**plain)
    profile = load_profile(given)
    if more := [name for name in plain if name not in ("slots", "context_tokens")]:
        raise ValueError(f"{', '.join(more)} cannot be set beside a profile; its own: slots, context_tokens")
    return checked(
        msgspec.structs.replace(
            profile,
            slots=min(profile.slots, plain.get("slots", profile.slots)),
            context_tokens=min(profile.context_tokens, plain.get("context_tokens", profile.context_tokens)),
        )
    )
