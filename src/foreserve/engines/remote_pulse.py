"""Whether a server still works, judged by its progress: pure, told of what is asked and heard.

A server with a long queue answers a probe late, as it answers everybody. So a late probe alone proves nothing: a server
counts as hung only where nothing at all has come of it meanwhile.
"""

from __future__ import annotations

import msgspec

PREFILL_TOKENS_PER_S = 20.0
"""A slow server's. Until the first byte of an answer a server may be busy with its prompt and look at nothing else."""

STEP_TOKENS = 2048.0
"""So much of a prompt a server reads in one step, within which its counters stand still."""

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
    any evidence mean that the server hangs: `limit_s`, or more while it may be reading a prompt of ours; at least
    `busy_s` then where it does not tell its progress, for an answer that comes in one piece may take any time; but at
    most `most_s`. All times are seconds on one clock.
    """

    def __init__(self, every_s: float, limit_s: float, busy_s: float, most_s: float, now: float) -> None:
        self._every_s = every_s
        self.limit_s = limit_s
        self._busy_s = busy_s
        self._most_s = max(most_s, limit_s)
        self._calls: dict[str, _UnderWay] = {}
        self.step_s: float | None = None
        """Seconds between the tokens of a stream, of late; `None` while none has told."""
        self._longest_s = 0.0
        """About the longest that an answer has let wait for its first byte, of late."""
        self._left_tokens = 0.0
        """Of prompts whose callers left before the first byte, since there was evidence: it may still read them."""
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
        self.proved(now)
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
        call = self._calls.pop(request_id, None)
        if call is not None and call.first is None:
            self._left_tokens += call.tokens

    def told(self, progress: float | None, now: float) -> bool:
        """The server has told its progress; whether it is another than before. The first tells nothing yet."""
        before, self._progress = self._progress, progress
        self._read_at = None if progress is None else now
        moved = progress is not None and before is not None and progress != before
        if moved:
            self.proved(now)
        return moved

    def probed(self, now: float) -> None:
        """A probe is sent."""
        self._probed_at = now

    def proved(self, now: float) -> None:
        """A probe was answered, or there was other evidence."""
        self.last = now
        self._left_tokens = 0.0

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
        unread = [call.tokens for call in self._calls.values() if call.first is None]
        if self._left_tokens:
            unread.append(self._left_tokens)
        if self._tells_of_none():
            step = min(max(unread, default=0.0), STEP_TOKENS)
            return min(self.limit_s + step / PREFILL_TOKENS_PER_S, self._most_s)
        patience = self.limit_s + sum(unread) / PREFILL_TOKENS_PER_S
        if self._calls and self._progress is None:
            patience += _SLACK * self._longest_s
        return min(max(patience, self._busy_s) if unread else patience, self._most_s)

    def _tells_of_none(self) -> bool:
        """Whether it has told, in the silence and while it had something to do, that it makes no progress."""
        if self._read_at is None or not self._calls:
            return False
        since = max(self.last, min(call.since for call in self._calls.values()))
        return self._read_at - since >= self.limit_s

    def hangs(self, probed_at: float, now: float) -> bool:
        """Whether a server that was probed at `probed_at` and has not answered is to be given up."""
        return now - max(probed_at, self.last) >= self.patience()
