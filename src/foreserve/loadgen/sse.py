"""Server-sent events from bytes, in whatever pieces the network brings them.

Follows the WHATWG specification (https://html.spec.whatwg.org/multipage/server-sent-events.html): lines end with LF,
CR or CRLF; `data` lines of one event are joined by LF; a line that starts with a colon is a comment.
"""

from __future__ import annotations

import msgspec

MAX_EVENT_BYTES = 8 * 2**20


class EventTooLong(ValueError):
    """An event, or a line without an end, is over 8 MiB."""


class Event(msgspec.Struct, frozen=True):
    """One event: its name (empty when it has none) and its data."""

    name: str
    data: str


class Parser:
    """Feed it bytes, get the events that they complete."""

    def __init__(self) -> None:
        self._tail = b""
        self._after_cr = False
        self._first = True
        self._name = ""
        self._data: list[str] = []
        self._held = 0

    def feed(self, piece: bytes) -> list[Event]:
        """The events that `piece` completes. Raises EventTooLong."""
        if self._after_cr and piece:
            # The CR has already ended its line; the LF of a CRLF that was split belongs to it.
            self._after_cr = False
            if piece.startswith(b"\n"):
                piece = piece[1:]
        if not piece:
            return []
        events: list[Event] = []
        for line in (self._tail + piece).splitlines(keepends=True):
            if line.endswith((b"\n", b"\r")):
                self._tail = b""
                self._line(line.rstrip(b"\r\n"), events)
            else:
                self._tail = line
        self._after_cr = piece.endswith(b"\r")
        if len(self._tail) + self._held > MAX_EVENT_BYTES:
            raise EventTooLong(f"a server-sent event is longer than {MAX_EVENT_BYTES} bytes")
        return events

    def close(self) -> list[Event]:
        """The stream has ended: an event whose blank line never came.

        The specification drops it; servers are seen that end with `data: [DONE]` and one newline, so we take it.
        """
        events: list[Event] = []
        if self._tail:
            self._line(self._tail, events)
            self._tail = b""
        self._line(b"", events)
        return events

    def _line(self, line: bytes, events: list[Event]) -> None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            if self._data:
                events.append(Event(self._name, "\n".join(self._data)))
            self._name, self._data, self._held = "", [], 0
            return
        # A line is whole, so no character of it is split. Comments (an empty field) fall through.
        field, _, value = line.partition(b":")
        if field == b"data":
            self._held += len(value)
            self._data.append(value.removeprefix(b" ").decode("utf-8", "replace"))
        elif field == b"event":
            self._name = value.removeprefix(b" ").decode("utf-8", "replace")
