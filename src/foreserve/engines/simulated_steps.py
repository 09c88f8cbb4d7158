"""Continuous batching as a pure model of an engine's steps: no clock, no tasks; `now` is told, in seconds.

Each step gives every sequence that decodes one token and fills the rest of `max_batched_tokens` with parts of prompts,
in order of arrival (dynamic split-fuse); without that bound one whole prompt is a step of its own, and decoding stands
still meanwhile. Steps that only decode are not taken one by one: a stretch of them ends where a chunk is due, where the
KV cache has no room for one step more, or, once somebody comes or goes, with the step that is then running.

A prompt begins when there is a slot, room for all of it, and room for everybody's next token. When the KV cache is
full, the newest sequence is preempted: it waits before all others and is computed anew, with what it has made.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque

from foreserve.engines.profile import EngineProfile
from foreserve.engines.simulated_answering import Answering, Emission
from foreserve.engines.simulated_cost import DecodeCost, Line, PrefillCost
from foreserve.engines.simulated_kv import KVBlocks


class ContinuousSteps(KVBlocks):
    """Tell it what happens, in order of time: `advance` to a moment first, then `add` and `cancel` at that moment.

    Who is added at the very moment at which a step begins still joins it.
    """

    def __init__(self, profile: EngineProfile) -> None:
        super().__init__(profile)
        self.preemptions = 0
        """How often the KV cache was full, so that somebody's had to be computed again."""
        self.hits = 0
        """Prompt tokens that were found in the prefix cache."""
        self.waiting: deque[Answering] = deque()
        self._slots = profile.slots
        self._budget = profile.max_batched_tokens
        self._mixing = profile.mixing
        self._change_s = profile.change_s
        self._prefill = PrefillCost(profile.prefill)
        self._decode = DecodeCost(profile.decode)
        self._slow = 1.0
        self._order = 0
        self._due: list[tuple[int, int, Answering]] = []  # (decode step, place, who) of the next chunk of each
        self._context = 0  # of those that decode, the sum at step 0
        # The step, or stretch of steps, that runs.
        self._began = 0.0
        self._plain = 0.0  # when the first of a stretch has spent what it takes for being of another size
        self._ends: float | None = None
        self._size = 0  # tokens that it computes at each step
        self._last_size = 0
        self._stretch = 0  # its decode steps; 0 when it computes prompts
        self._parts: list[tuple[Answering, int]] = []  # what it computes of whose prompt
        self._left = 0  # tokens that it could compute beside
        self._line = self._decode.line(1)  # how long its decode steps take, by context
        self._from = 0.0  # the context at its first
        self._last_s: float | None = None
        self._last: tuple[Line, float, float] | None = None  # after a stretch: what to read that from

    # --- what happens

    def add(self, sequence: Answering, now: float) -> None:
        """It joins a step that begins at its `ready` or after."""
        self.waiting.append(sequence)
        if self._ends is None:
            self._began = now
            self._begin()
        elif now <= self._began:
            self._begin()
        elif self._stretch and len(self.waiting) == 1 and len(self.running) < self._slots:
            self._cut(max(now, sequence.ready))
            if (not self._due or self._due[0][0] > self._step + self._stretch) and (
                sequence.ready <= now or self._last_runs(now)
            ):
                # Nothing is put out there: the next step can be told now, and one event less is waited for.
                self._end_step([])
                self._began = self._ends
                self._begin()

    def cancel(self, sequence: Answering, now: float) -> Emission | None:
        """End it now. Returns what it has made that was not put out, and its end; `None` when it has ended."""
        if sequence.ended:
            return None
        if sequence.place:
            self._interrupt(now)
            # A step that has been told of before it begins counts the one that still runs.
            reached = max(sequence.reached(self._step + self.under_way(now)) - (now < self._began), sequence.given)
            self._leave(sequence)
        else:
            reached = sequence.made
            self.waiting.remove(sequence)
            if self.waiting and len(self.running) < self._slots:
                self._interrupt(now)  # who waited behind it may fit
        if self._ends is not None and now <= self._began:
            self._parts.clear()
            self._begin()
        sequence.ended = True
        tokens, sequence.given = reached - sequence.given, reached
        return sequence, tokens, "cancelled"

    def next_at(self) -> float | None:
        """When `advance` has something to do, `None` when there is nothing left."""
        return self._ends

    def advance(self, now: float) -> list[Emission]:
        """What has come by `now` since the last call, in order."""
        out: list[Emission] = []
        while self._ends is not None and self._ends <= now:
            self._end_step(out)
            self._began = self._ends
            self._begin()
        return out

    def progress(self, now: float) -> list[Emission]:
        """What all have made by `now` and not put out yet."""
        step, out = self._step + self.under_way(now), list[Emission]()
        for sequence in self.running.values():
            tokens = min(sequence.reached(step), sequence.output - 1) - sequence.given
            if sequence.zero is not None and tokens > 0:
                sequence.given += tokens
                out.append((sequence, tokens, None))
        return out

    def slow(self, factor: float, now: float) -> None:
        """Steps that begin from now on take `factor` times as long."""
        self._interrupt(now)
        self._slow = factor
        if self._ends is not None and now <= self._began:
            self._begin()

    # --- what is known of it

    def under_way(self, now: float) -> int:
        """Whole steps of the present stretch that are over."""
        if not self._stretch or self._ends is None or now <= self._plain:
            return 0
        if now >= self._ends:
            return self._stretch
        if self._stretch == 1:
            return 0
        at_least = self._line.steps(self._from, (now - self._plain) / self._slow, self._stretch)
        took = self._line.total(self._from, at_least) * self._slow
        return at_least - (took > (now - self._plain) * (1.0 + 1e-9))

    def kv_fraction(self, now: float) -> float:
        """The share of the KV cache that somebody holds."""
        return self._used(self._step + self.under_way(now)) / self._blocks

    def last_step_s(self, now: float) -> float | None:
        """How long the newest step took that is over; `None` before the first."""
        if over := self.under_way(now):
            return self._line.at(self._from + over - 1) * self._slow
        if self._last_s is None and self._last is not None:
            line, context, slow = self._last
            return line.at(context) * slow
        return self._last_s

    # --- a step begins

    def _begin(self) -> None:
        """Choose what the step or stretch that begins now does; once more when somebody comes at this very moment."""
        if self._stretch or not self._parts:
            self._stretch = 0
            while self._decoding and not self._room(1):
                self._preempt()
            self._continue_prompts()
        if self.waiting:
            self._take_prompts()
        if self._parts:
            self._ends = self._began + self._mixed_s() * self._slow
        elif self._decoding:
            self._decode_on()
        else:
            self._ends = self.waiting[0].ready if self.waiting else None

    def _continue_prompts(self) -> None:
        """Of those that have begun, in their order."""
        self._left = 1 if self._budget is None else self._budget - self._decoding
        if self._reserved:
            for sequence in self.running.values():
                if sequence.todo and self._left > 0:
                    tokens = sequence.todo if self._budget is None else min(sequence.todo, self._left)
                    self._parts.append((sequence, tokens))
                    self._left -= tokens

    def _take_prompts(self) -> None:
        """Begin those that wait and fit, in their order, as far as the step has room."""
        waiting = self.waiting
        while waiting and self._left > 0 and len(self.running) < self._slots and waiting[0].ready <= self._began:
            sequence = waiting[0]
            if not self._join(sequence):
                break
            waiting.popleft()
            tokens = sequence.todo if self._budget is None else min(sequence.todo, self._left)
            self._left -= tokens
            self._parts.append((sequence, tokens))

    def _join(self, sequence: Answering) -> bool:
        """Give it a slot and set its KV blocks aside, unless they are not there."""
        tokens, block, cache = sequence.prompt + sequence.made, self._block, self._cache
        hits = idle = 0
        if cache is not None and sequence.units:
            self._evict()
            hits, idle = cache.hits(sequence.units)
        known = hits * sequence.unit
        blocks = -(-(tokens + 1 - known) // block)
        if self.running and not self._room(1, blocks + idle):
            return False
        if cache is not None:
            for unit in sequence.units[:hits]:
                cache.hold(unit, sequence.unit // block)
        sequence.held, sequence.reserved = hits, blocks
        self._reserved += blocks
        known = min(known, (tokens - 1) // block * block)
        sequence.todo = tokens - known
        if sequence.cached is None:
            sequence.cached = min(known, sequence.prompt)
            self.hits += sequence.cached
        self._order += 1
        sequence.place = self._order
        self.running[sequence.id] = sequence
        return True

    def _changed_s(self, tokens: int) -> float:
        """What a step of so many tokens takes for being of another size than the one before it."""
        self._size = tokens
        return self._change_s if tokens != self._last_size else 0.0

    def _mixed_s(self) -> float:
        """Of the step that begins now and computes `_parts`."""
        parts = self._parts
        if len(parts) == 1:
            sequence, tokens = parts[0]
            seconds = self._prefill.at(tokens, sequence.prompt + sequence.made - sequence.todo)
        else:
            tokens = before = 0
            for sequence, part in parts:
                tokens += part
                before += part * (sequence.prompt + sequence.made - sequence.todo)
            seconds = self._prefill.at(tokens, before / tokens)
        if self._decoding and self._budget is not None:
            seconds += self._mixing * self._decode.line(self._decoding).at(self._mean())
            tokens += self._decoding
        return seconds + self._changed_s(tokens)

    def _decode_on(self) -> None:
        """Nothing but decoding, up to the next chunk of anybody, a full KV cache, or who is ready in between."""
        due = self._due
        while due[0][1] != due[0][2].place:
            heapq.heappop(due)  # of one that was cancelled or preempted
        steps = due[0][0] - self._step
        if not self._room(steps):
            steps = bisect_right(range(1, steps), False, key=lambda step: not self._room(step))
        self._stretch = steps
        self._line, self._from = self._decode.line(self._decoding), self._mean()
        self._plain = self._began + self._changed_s(self._decoding) * self._slow
        self._ends = self._plain + self._line.total(self._from, steps) * self._slow
        if self.waiting and len(self.running) < self._slots and self.waiting[0].ready > self._began:
            self._cut(self.waiting[0].ready)

    def _cut(self, at: float) -> None:
        """End the stretch with the step that runs at `at`."""
        assert self._ends is not None
        if self._stretch < 2 or at >= self._ends:
            return
        line = self._line
        self._stretch = max(line.steps(self._from, (at - self._plain) / self._slow, self._stretch), 1)
        self._ends = self._plain + line.total(self._from, self._stretch) * self._slow

    def _last_runs(self, now: float) -> bool:
        """Whether the last step of the stretch has begun."""
        if self._stretch == 1:
            return self._began <= now
        return self._plain + self._line.total(self._from, self._stretch - 1) * self._slow <= now

    def _interrupt(self, now: float) -> None:
        """Let nothing but the step that runs now be under way, so that who decodes may change, and how fast."""
        if self._stretch < 2 or now <= self._began:
            return
        self._cut(now)
        if over := self._stretch - 1:
            self._last_s = self._line.at(self._from + over - 1) * self._slow
            self._began = self._plain = self._plain + self._line.total(self._from, over) * self._slow
            self._last_size = self._size
            self._step += over
            self._from += over
            self._stretch = 1

    def _mean(self) -> float:
        """The context that each of those that decode holds on average."""
        return self._context / self._decoding + self._step

    # --- a step ends

    def _end_step(self, out: list[Emission]) -> None:
        assert self._ends is not None
        self._last_size = self._size
        if self._stretch:
            self._last_s = None
            if self._stretch == 1:
                self._last_s = self._ends - self._began
            self._last = (self._line, self._from + self._stretch - 1, self._slow)
            self._step += self._stretch
            self._stretch = 0
        elif self._parts:
            self._last_s = self._ends - self._began
            if self._budget is not None:
                self._step += 1
            parts, self._parts = self._parts, []
            for sequence, tokens in parts:
                if sequence.place:
                    self._computed(sequence, tokens)
        due, step = self._due, self._step
        while due and due[0][0] <= step:
            _, place, sequence = heapq.heappop(due)
            if sequence.place == place:
                self._emit(sequence, out)

    def _computed(self, sequence: Answering, tokens: int) -> None:
        """So many tokens more of its prompt; after the last it has made its next token and decodes."""
        sequence.todo -= tokens
        if self._cache is not None and sequence.held < len(sequence.units):
            self._publish(sequence, self._cache)
        if sequence.todo:
            return
        self._reserved -= sequence.reserved
        sequence.reserved = 0
        sequence.zero = self._step - sequence.made - 1
        self._decoding += 1
        self._context += sequence.prompt - sequence.zero
        self._private += sequence.prompt - sequence.zero - sequence.held * sequence.unit
        heapq.heappush(self._due, (sequence.zero + sequence.next, sequence.place, sequence))

    def _emit(self, sequence: Answering, out: list[Emission]) -> None:
        """Put out the chunk that is due, and note when the next one is."""
        assert sequence.zero is not None
        reached = self._step - sequence.zero
        if reached >= sequence.output:
            tokens, sequence.given = sequence.output - sequence.given, sequence.output
            self._leave(sequence)
            sequence.ended = True
            out.append((sequence, tokens, sequence.end))
            return
        out.append((sequence, reached - sequence.given, None))
        sequence.given = reached
        sequence.next = sequence.after(reached)
        heapq.heappush(self._due, (sequence.zero + sequence.next, sequence.place, sequence))

    # --- KV blocks

    def _leave(self, sequence: Answering) -> None:
        """It runs no more, or not for now, and gives back what it held."""
        if self._cache is not None:
            self._evict()
            self._cache.release(sequence.units[: sequence.held])
        if sequence.zero is not None:
            sequence.made = self._step - sequence.zero
            self._decoding -= 1
            self._context -= sequence.prompt - sequence.zero
            self._private -= sequence.prompt - sequence.zero - sequence.held * sequence.unit
        self._reserved -= sequence.reserved
        sequence.zero = None
        sequence.held = sequence.reserved = sequence.todo = sequence.place = 0
        del self.running[sequence.id]

    def _preempt(self) -> None:
        """The newest gives way. Whoever is alone always has room: prompt and answer fit the KV cache."""
        newest = next(reversed(self.running.values()))
        self._leave(newest)
        self.waiting.appendleft(newest)
        self.preemptions += 1
