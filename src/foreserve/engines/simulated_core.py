"""A simulated engine without a clock: works go in, chunks come out, and `now` (seconds) is told."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Work
from foreserve.engines.answer import generate_of, refusal
from foreserve.engines.generation import Count, Sized, Tokens, TrueLengths
from foreserve.engines.profile import EngineProfile
from foreserve.engines.simulated_answering import Answering, Emission, draw
from foreserve.engines.simulated_prefix import hashed, whole_units
from foreserve.engines.simulated_static import StaticSteps
from foreserve.engines.simulated_steps import ContinuousSteps


class SimulatedCore:
    """What `SimulatedEngine` says of itself, as plain calls in order of time: `advance` to a moment first.

    Ids must be new or have ended. Everything that was taken in ends with exactly one finish.
    """

    def __init__(
        self,
        profile: EngineProfile,
        *,
        seed: int = 0,
        output_tokens: Sequence[int] | None = None,
        emit_every: int | None = None,
        lengths: TrueLengths | None = None,
        capacity: Mapping[str, float] | None = None,
    ) -> None:
        self.profile = profile
        self._told = dict(capacity or {"slots": profile.slots, "kv_tokens": profile.kv_tokens})
        self.static = profile.batching == "static"
        self._seed = seed
        self._output = output_tokens
        self._every = emit_every
        self._overhead_s = profile.overhead_s
        self._lengths = lengths
        self._steps: ContinuousSteps | StaticSteps = StaticSteps(profile) if self.static else ContinuousSteps(profile)
        whole = profile.kv_tokens // profile.block_tokens * profile.block_tokens
        self._context = min(profile.context_tokens, whole)
        self._live: dict[str, Answering] = {}
        self._timed: dict[str, tuple[float, int, float]] = {}
        """Works of the other kind by id: when each ends, its order, and the seconds that it takes."""
        self._due: list[tuple[float, int, str]] = []
        self._order = 0
        self._slow = 1.0

    @property
    def preemptions(self) -> int:
        """How often the KV cache was full, so that somebody's had to be computed again."""
        return self._steps.preemptions

    def info(self) -> EngineInfo:
        """What the engine is."""
        profile = self.profile
        facts: dict[str, Any] = {"context_tokens": self._context, "weights": "none"}
        if not self.static:
            facts |= {"block_tokens": profile.block_tokens, "prefix_caching": profile.prefix_caching}
        if profile.max_batched_tokens is not None:
            facts["max_batched_tokens"] = profile.max_batched_tokens
        return EngineInfo(
            batching=profile.batching,
            capacity={name: float(most) for name, most in self._told.items()},
            features=("penalties", "seed", "ignore_eos"),
            facts=facts,
            # As a server tells that is given more than its cache holds: it queues and preempts by itself.
            holds={} if "kv_tokens" in self._told else {"kv_tokens": float(profile.kv_tokens)},
        )

    # --- what happens

    def run(self, works: Sequence[Work], now: float) -> list[Chunk]:
        """Take them in: as one batch when static. Returns the ends of those that cannot run."""
        refused: list[Chunk] = []
        rows: list[Answering] = []
        timed: list[tuple[Work, float]] = []
        for work in works:
            if type(work.payload) is Sized:
                row = self._sized(work, work.payload, now)
            elif (seconds := _seconds(work)) is not None:
                timed.append((work, seconds))
                continue
            else:
                row = self._generate(work, now)
            if type(row) is Answering:
                self._live[work.id] = row
                rows.append(row)
            elif type(row) is Finish:
                refused.append(Chunk(id=work.id, index=0, attempt=work.attempt, finish=row))
        if timed:
            longest = max(seconds for _, seconds in timed)
            for work, seconds in timed:
                self._run_seconds(work, longest if self.static else seconds, now)
        if isinstance(self._steps, ContinuousSteps):
            for row in rows:
                self._steps.add(row, now)
        elif rows:
            self._steps.add(rows, now)
        return refused

    def cancel(self, request_id: str, now: float) -> list[Chunk]:
        """End it; in a batch that runs with the present step, and `advance` tells. Unknown ids are ignored."""
        request = self._live.get(request_id)
        if request is None:
            return []
        if request_id in self._timed:
            del self._timed[request_id]
            return [self._chunk((request, 0, "cancelled"))]
        emission = self._steps.cancel(request, now)
        return [] if emission is None else [self._chunk(emission)]

    def next_at(self) -> float | None:
        """When `advance` has something to do, `None` when nothing runs."""
        at = self._steps.next_at()
        if self._due:
            return self._due[0][0] if at is None else min(at, self._due[0][0])
        return at

    def advance(self, now: float) -> list[Chunk]:
        """What has come by `now` since the last call, in order."""
        steps, due = self._steps, self._due
        chunks: list[Chunk] = []
        if (at := steps.next_at()) is not None and at <= now:
            chunks = [self._chunk(emission) for emission in steps.advance(now)]
        while due and due[0][0] <= now:
            _, order, request_id = heapq.heappop(due)
            if request_id in self._timed and self._timed[request_id][1] == order:
                chunks.append(self._chunk((self._live[request_id], 0, "stop")))
                del self._timed[request_id]
        return chunks

    def progress(self, now: float) -> list[Chunk]:
        """The tokens made by `now` that have not been put out, as chunks of their own."""
        return [self._chunk(emission) for emission in self._steps.progress(now)]

    def slow(self, factor: float, now: float) -> None:
        """What begins from now on takes `factor` times as long as the profile says, and so does the rest of `seconds`.

        Raises ValueError unless it is above 0.
        """
        if factor <= 0.0:
            raise ValueError(f"a factor of {factor:g} is no slowness: it must be above 0")
        self._steps.slow(factor, now)
        change, self._slow = factor / self._slow, factor
        self._timed = {
            id: (now + (end - now) * change, order, seconds) for id, (end, order, seconds) in self._timed.items()
        }
        self._due = [(end, order, id) for id, (end, order, _) in self._timed.items()]
        heapq.heapify(self._due)

    def close(self) -> list[Chunk]:
        """End all as cancelled, at once."""
        chunks = [self._chunk((request, 0, "cancelled")) for request in list(self._live.values())]
        preemptions = self._steps.preemptions
        self._steps = StaticSteps(self.profile) if self.static else ContinuousSteps(self.profile)
        self._steps.preemptions = preemptions
        self._timed.clear()
        self._due.clear()
        return chunks

    def attempt(self, request_id: str) -> int | None:
        """Which attempt of a request runs or waits here, if any does."""
        request = self._live.get(request_id)
        return None if request is None else request.work.attempt

    @property
    def holds(self) -> int:
        """How many requests run or wait."""
        return len(self._live)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self._live

    def load(self, now: float) -> EngineLoad:
        """See `Engine.load`. `cached_tokens` counts the prompt tokens that were found in the prefix cache so far."""
        steps = self._steps
        return EngineLoad(
            running=len(steps.running) + len(self._timed),
            waiting=len(steps.waiting),
            kv_fraction=steps.kv_fraction(now),
            cached_tokens=steps.hits if self.profile.prefix_caching else None,
            last_step_s=steps.last_step_s(now) if steps.running else None,
        )

    # ---

    def _generate(self, work: Work, now: float) -> Answering | Finish:
        """What `work` will put out, or why it cannot run."""
        try:
            payload = generate_of(work)
        except msgspec.ValidationError as error:
            return Finish(reason="error", error=f"ValidationError: {error}")
        if words := refusal(payload, self._context):
            return Finish(reason="rejected", error=words)
        output = payload.max_tokens
        if self._output is not None and not payload.ignore_eos:
            drawn = draw(self._seed, work.id, self._output[0], self._output[1])
            output = min(output, max(drawn - payload.continued, 1))
        caches = self.profile.prefix_caching
        units, unit = hashed(payload.prompt, self.profile.block_tokens) if caches else ((), 0)
        return Answering(
            work.id,
            len(payload.prompt),
            output,
            limited=output == payload.max_tokens,
            every=self._every,
            units=units,
            unit=unit,
            ready=now + self._overhead_s,
            work=work,
        )

    def _sized(self, work: Work, sized: Sized, now: float) -> Answering | Finish:
        """An answer that would outgrow the context ends there, as its limit would end it."""
        prompt = sized.prompt_tokens
        if self._lengths is None:
            return Finish(
                reason="rejected", error="a request by its sizes alone needs an engine that knows true lengths"
            )
        if not 0 < prompt < self._context or sized.max_tokens < 1:
            words = f"{prompt} prompt and {sized.max_tokens} output tokens do not fit the context of {self._context}"
            return Finish(reason="rejected", error=words)
        left = max(1, self._lengths.output_tokens(work.id) - sized.continued)
        output = min(left, sized.max_tokens, self._context - prompt)
        units: tuple[int, ...] = ()
        unit = 0
        if sized.prefix and self.profile.prefix_caching:
            units, unit = whole_units(sized.prefix, sized.block_tokens, self.profile.block_tokens)
            units = units[: prompt // unit]
        return Answering(
            work.id,
            prompt,
            output,
            limited=left > output,
            every=self._every,
            units=units,
            unit=unit,
            ready=now + self._overhead_s,
            work=work,
        )

    def _run_seconds(self, work: Work, seconds: float, now: float) -> None:
        self._order += 1
        self._live[work.id] = Answering(work.id, 0, 1, work=work)
        self._timed[work.id] = (now + seconds * self._slow, self._order, seconds)
        heapq.heappush(self._due, (now + seconds * self._slow, self._order, work.id))

    def _chunk(self, emission: Emission) -> Chunk:
        request, tokens, end = emission
        work: Work = request.work
        index = request.number
        request.number = index + 1
        data: Count | Tokens | None = None
        if tokens:
            if type(work.payload) is Sized:
                data = Count(tokens)
            else:
                first = request.prompt + request.sent
                data = Tokens(ids=list(range(first, first + tokens)))
            request.sent += tokens
        if end is None:
            return Chunk(id=work.id, index=index, data=data, attempt=work.attempt)
        del self._live[work.id]
        if end == "memory":
            finish = Finish(
                reason="error",
                usage=self._usage(request),
                error="the batch ran out of memory",
                detail={"retry": "memory"},
            )
        else:
            finish = Finish(reason=end, usage=self._usage(request))
        return Chunk(id=work.id, index=index, data=data, attempt=work.attempt, finish=finish)

    def _usage(self, request: Answering) -> dict[str, float]:
        if request.id in self._timed:
            return {"seconds": self._timed[request.id][2]}
        if not request.prompt:
            return {}
        usage = {"prompt_tokens": float(request.prompt), "output_tokens": float(request.given)}
        if self.profile.prefix_caching:
            usage["cached_tokens"] = float(request.cached or 0)
        return usage


def _seconds(work: Work) -> float | None:
    """How long work of another kind than a language model's takes; `None` for all other."""
    payload = work.payload
    if isinstance(payload, Mapping) and "seconds" in payload:
        return float(payload["seconds"])
    return None
