"""What is measured of one request: filled in by the client as it goes, then frozen.

All times are seconds since the start of the run.
"""

from __future__ import annotations

from array import array
from enum import StrEnum

import msgspec


class Ending(StrEnum):
    """How a request ended, seen from the client."""

    DONE = "done"
    REFUSED = "refused"
    """429 or 503 before anything was delivered: the server said not now."""
    HTTP_ERROR = "http_error"
    """Any other status that is not 200."""
    STREAM_ERROR = "stream_error"
    """The answer began, then an error event, or something unreadable, came."""
    CUT = "cut"
    """The answer began, then ended without `[DONE]`, finish reason or usage."""
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    """No connection, or it was lost before the answer's end."""
    ABANDONED = "abandoned"
    """Still running when the run's drain limit was reached, and cancelled by us."""


class Attempt(msgspec.Struct, frozen=True):
    """One try: the HTTP status (`None` when there was no answer) and its seconds from send to end."""

    status: int | None
    seconds: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One request as it was measured.

    `due` is when it should have been sent, `sent` when its first attempt was, `first` the first output of the last
    attempt. `output_times` has one time for each event that carried output. `output_tokens` are the server's count,
    or the number of those events where `counted` is true. `streamed` is false for an answer that came in one piece.
    """

    index: int
    due: float
    sent: float
    ended: float
    ending: Ending
    first: float | None = None
    status: int | None = None
    error: str = ""
    attempts: tuple[Attempt, ...] = ()
    output_times: array[float] = msgspec.field(default_factory=lambda: array("d"))
    prompt_tokens: int | None = None
    output_tokens: int = 0
    counted: bool = False
    streamed: bool = True
    finish_reason: str | None = None
    tenant: str | None = None
    request_id: str | None = None
    text: str | None = None


class Recording:
    """A result in the making. Whatever happens to the request, `result` says what was seen of it."""

    def __init__(self, index: int, due: float, tenant: str | None = None) -> None:
        self.index = index
        self.due = due
        self.tenant = tenant
        self.sent: float | None = None
        self.attempts: list[Attempt] = []
        self.text: list[str] | None = None
        self.begin()

    def begin(self) -> None:
        """A new attempt: what the last one delivered does not count."""
        self.first: float | None = None
        self.status: int | None = None
        self.error = ""
        self.output_times: array[float] = array("d")
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.streamed = True
        self.finish_reason: str | None = None
        self.request_id: str | None = None
        if self.text is not None:
            self.text.clear()

    def output(self, at: float) -> None:
        """Something of the answer came at `at`."""
        if self.first is None:
            self.first = at
        self.output_times.append(at)

    def result(self, ending: Ending, ended: float) -> Result:
        """Frozen."""
        # An answer in one piece has no events to count.
        counted = self.output_tokens is None and self.streamed
        tokens = len(self.output_times) if counted else self.output_tokens
        return Result(
            index=self.index,
            due=self.due,
            sent=ended if self.sent is None else self.sent,
            ended=ended,
            ending=ending,
            first=self.first,
            status=self.status,
            error=self.error,
            attempts=tuple(self.attempts),
            output_times=self.output_times,
            prompt_tokens=self.prompt_tokens,
            output_tokens=tokens or 0,
            counted=counted,
            streamed=self.streamed,
            finish_reason=self.finish_reason,
            tenant=self.tenant,
            request_id=self.request_id,
            text=None if self.text is None else "".join(self.text),
        )
