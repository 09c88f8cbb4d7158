"""Whether a server still works, judged by its progress: pure, told of what is asked and heard.

A server with a long queue answers a probe late, as it answers everybody. So a late probe alone proves nothing: a server
counts as hung only where nothing at all has come of it meanwhile.
"""

from __future__ import annotations

import msgspec

PREFILL_TOKENS_PER_S = 200.0
"""A slow server's. Until the first byte of an answer a server may be busy with its prompt and look at nothing else."""

QUIET_S = 1.0
"""A server that is to answer and says nothing for so long may be probed."""

BYTES_PER_TOKEN = 4.0
_DECAY = 0.9
_SLACK = 1.5
_WEIGHT = 0.2


class _UnderWay(msgspec.Struct):
    since: float
    tokens: float
    answers: int
    first: float | None = None


class Pulse:
    """Evidence is a byte of an answer, a counter of the server's that grew, or a probe that was answered.

    `every_s` of silence make a probe due, less while answers are under way. While it is out, `patience` seconds without
    any evidence mean that the server hangs: `limit_s`, or more while answers are under way and the server does not tell
    its progress, but at most `most_s`. All times are seconds on one clock.
    """

    def __init__(self, every_s: float, limit_s: float, most_s: float, now: float) -> None:
        self._every_s = every_s
        self.limit_s = limit_s
        self._most_s = max(most_s, limit_s)
        self._calls: dict[str, _UnderWay] = {}
        self.step_s: float | None = None
        """Seconds between the tokens of a stream, of late; `None` while none has told."""
        self._longest_s = 0.0
        """About the longest that an answer has let wait for its first byte, of late."""
        self._progress: float | None = None
        self._read_at: float | None = None
        """When the progress was last read, whatever it was."""
        self._probed_at = now
        self.last = now
        """When there was evidence."""

    # --- what it is told

    def began(self, request_id: str, body_bytes: int, answers: int, now: float) -> None:
        """A request is being sent."""
        self._calls[request_id] = _UnderWay(now, body_bytes / BYTES_PER_TOKEN, answers)

    def heard(self, request_id: str, now: float) -> None:
        """A part of a good answer has come."""
        self.last = now
        call = self._calls.get(request_id)
        if call is not None and call.first is None:
            call.first = now
            self._longest_s = max(now - call.since, _DECAY * self._longest_s)

    def streamed(self, request_id: str, tokens: float) -> None:
        """All that a stream has told came by the last part heard: so many tokens."""
        call = self._calls.get(request_id)
        if call is not None and call.first is not None and tokens > 1 and self.last > call.first:
            step_s = (self.last - call.first) / (tokens - 1)
            self.step_s = step_s if self.step_s is None else self.step_s + _WEIGHT * (step_s - self.step_s)

    def ended(self, request_id: str) -> None:
        """The request is under way no more, however it has ended."""
        self._calls.pop(request_id, None)

    def told(self, progress: float | None, now: float) -> bool:
        """The server has told its progress; whether it is another than before. The first tells nothing yet."""
        before, self._progress = self._progress, progress
        self._read_at = None if progress is None else now
        moved = progress is not None and before is not None and progress != before
        if moved:
            self.last = now
        return moved

    def probed(self, now: float) -> None:
        """A probe is sent."""
        self._probed_at = now

    def proved(self, now: float) -> None:
        """A probe was answered."""
        self.last = now

    def paused(self, seconds: float) -> None:
        """For so long nobody could hear it."""
        self.last += seconds

    # --- what it tells

    @property
    def under_way(self) -> int:
        """How many answers we have asked for and not got to their ends."""
        return sum(call.answers for call in self._calls.values())

    def due(self, now: float) -> bool:
        """Whether a probe is to be sent."""
        if not self._calls:
            return now - self.last >= self._every_s
        # Somebody waits, so it is asked sooner, and no more often than otherwise.
        return now - self.last >= min(self._every_s, QUIET_S) and now - self._probed_at >= self._every_s

    def patience(self) -> float:
        """How long the silence may last while a probe is out."""
        waiting = [call.tokens for call in self._calls.values() if call.first is None]
        if not self._calls or (self._read_at is not None and self._read_at - self.last >= self.limit_s):
            # It has told, in the silence, that it makes no progress.
            return self.limit_s
        longer = max(waiting, default=0.0) / PREFILL_TOKENS_PER_S
        if self._progress is None:
            longer += _SLACK * self._longest_s
        return min(self.limit_s + longer, self._most_s)

    def hangs(self, probed_at: float, now: float) -> bool:
        """Whether a server that was probed at `probed_at` and has not answered is to be given up."""
        return now - max(probed_at, self.last) >= self.patience()
