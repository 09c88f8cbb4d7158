"""Static batches as a pure model: every step costs all places of the batch, and memory is padded to the longest.

A batch is prefilled padded to its longest prompt and decoded to its longest output; when it outgrows the KV cache, all
its rows end for want of memory. Batches run one after another. `now` is told, in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from foreserve.engines.profile import EngineProfile
from foreserve.engines.simulated_answering import Answering, Emission
from foreserve.engines.simulated_cost import DecodeCost, PrefillCost


class StaticSteps:
    """As `ContinuousSteps`, by batches."""

    def __init__(self, profile: EngineProfile) -> None:
        self.preemptions = 0
        self.hits = 0
        self.running: dict[str, Answering] = {}
        self._batches: deque[list[Answering]] = deque()
        self._kv_tokens = profile.kv_tokens
        self._prefill = PrefillCost(profile.prefill)
        self._decode = DecodeCost(profile.decode)
        self._slow = 1.0
        # The batch that runs: its rows that have not ended, its places, its longest prompt.
        self._rows: list[Answering] = []
        self._places = 0
        self._longest = 0
        self._last = 0  # the last step that has room
        self._step = 0  # the token that its rows have made; 0 while prompts are computed
        self._stretch = 0
        self._line = self._decode.line(1)
        self._began = 0.0
        self._ends: float | None = None

    @property
    def waiting(self) -> list[Answering]:
        """Of batches that have not begun."""
        return [row for batch in self._batches for row in batch]

    def add(self, rows: Sequence[Answering], now: float) -> None:
        """One batch. It begins when those before it have ended."""
        self._batches.append(list(rows))
        if self._ends is None:
            self._next_batch(now)

    def cancel(self, sequence: Answering, now: float) -> Emission | None:
        """End it: now, or with the step that runs, when its batch has begun (then `advance` tells)."""
        if sequence.ended:
            return None
        for batch in self._batches:
            if sequence in batch:
                batch.remove(sequence)
                sequence.ended = True
                return sequence, 0, "cancelled"
        sequence.next = 0
        self._cut(now)
        return None

    def next_at(self) -> float | None:
        """When `advance` has something to do, `None` when there is nothing left."""
        return self._ends

    def advance(self, now: float) -> list[Emission]:
        """What has come by `now` since the last call, in order."""
        out: list[Emission] = []
        while self._ends is not None and self._ends <= now:
            self._step += self._stretch
            self._began, ended = self._ends, []
            for row in self._rows:
                if row.next <= self._step or self._step > self._last:
                    self._emit(row, out)
                if row.ended:
                    ended.append(row)
            for row in ended:
                self._rows.remove(row)
                del self.running[row.id]
            if self._rows:
                self._decode_on()
            else:
                self._next_batch(self._ends)
        return out

    def progress(self, now: float) -> list[Emission]:
        """What all have made by `now` and not put out yet."""
        step, out = min(self._step + self.under_way(now), self._last), list[Emission]()
        for row in self._rows:
            if (tokens := min(step, row.output - 1) - row.given) > 0:
                row.given += tokens
                out.append((row, tokens, None))
        return out

    def slow(self, factor: float, now: float) -> None:
        """Steps that begin from now on take `factor` times as long."""
        self._cut(now)
        if (over := self._stretch - 1) > 0:
            self._began += self._line.total(self._context, over) * self._slow
            self._step += over
            self._stretch = 1
        self._slow = factor

    def under_way(self, now: float) -> int:
        """Whole steps of the present stretch that are over."""
        if not self._step or self._ends is None or now <= self._began:
            return 0
        if now >= self._ends or self._stretch == 1:
            return self._stretch if now >= self._ends else 0
        steps = self._line.steps(self._context, (now - self._began) / self._slow, self._stretch)
        return steps - (self._line.total(self._context, steps) * self._slow > (now - self._began) * (1.0 + 1e-9))

    def kv_fraction(self, now: float) -> float:
        """The share of the KV cache that the batch holds, padding and ended rows included.

        All of it while a step runs for which there is too little: its rows end with that.
        """
        return min(self._places * (self._longest + self._step + self.under_way(now)) / self._kv_tokens, 1.0)

    def last_step_s(self, now: float) -> float | None:
        """How long a step takes now; `None` while nothing is decoded."""
        return self._line.at(self._context + self.under_way(now)) * self._slow if self._step else None

    # ---

    def _next_batch(self, now: float) -> None:
        self._places = self._longest = self._step = self._stretch = 0
        self._rows, self._ends = [], None
        while self._batches and not self._rows:
            self._rows = self._batches.popleft()
        if not self._rows:
            return
        self.running = {row.id: row for row in self._rows}
        self._places = len(self._rows)
        self._longest = max(row.prompt for row in self._rows)
        self._last = max(self._kv_tokens // self._places - self._longest, 0)
        self._line = self._decode.line(self._places)
        self._began, self._stretch = now, 1
        self._ends = now + self._prefill.at(self._longest * self._places, 0.0) * self._slow

    def _decode_on(self) -> None:
        """To the next chunk of any row, or the first step for which there is no room."""
        assert self._ends is not None
        until = min(self._last + 1, *(row.next for row in self._rows))
        self._stretch = max(until - self._step, 1)
        self._ends = self._began + self._line.total(self._context, self._stretch) * self._slow

    def _cut(self, now: float) -> None:
        """End the stretch with the step that runs now."""
        if self._ends is None or not self._step or self._stretch < 2 or now >= self._ends:
            return
        steps = self._line.steps(self._context, (now - self._began) / self._slow, self._stretch)
        self._stretch = max(steps, 1)
        self._ends = self._began + self._line.total(self._context, self._stretch) * self._slow

    @property
    def _context(self) -> float:
        return float(self._longest + self._step)

    def _emit(self, row: Answering, out: list[Emission]) -> None:
        """Its chunk at this step, and its end when it is cancelled or complete."""
        if row.next == 0:
            out.append((row, 0, "cancelled"))
            row.ended = True
        elif self._step > self._last:
            out.append((row, self._last - row.given, "memory"))
            row.given, row.ended = self._last, True
        else:
            row.ended = self._step >= row.output
            out.append((row, self._step - row.given, row.end if row.ended else None))
            row.given = self._step
            row.next = row.after(self._step)
