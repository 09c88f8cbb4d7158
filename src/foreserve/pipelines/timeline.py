"""When each stage worked for which child of one request."""

from __future__ import annotations

from typing import Any, Final

MOST_SPANS: Final = 4096
"""Of one request; the calls after that are only counted."""


class Span:
    """One call of a stage: from when to when (loop seconds), for which child, and how it ended."""

    __slots__ = ("ancestry", "began", "ended", "facts", "how", "name")

    def __init__(self, name: str, ancestry: tuple[tuple[str, Any], ...], began: float) -> None:
        self.name = name
        self.ancestry = ancestry
        self.began = began
        self.ended: float | None = None
        self.how = ""
        self.facts: dict[str, Any] = {}
        """What a service tells of it, such as the replica."""

    def end(self, at: float, how: str) -> None:
        """It is over."""
        self.ended, self.how = at, how

    @property
    def seconds(self) -> float:
        """How long it took; 0 while it runs."""
        return 0.0 if self.ended is None else self.ended - self.began


class Timeline:
    """The spans of one request, in the order in which they began. It arrived at `arrival`, in loop seconds."""

    def __init__(self, pipeline: str = "", request: str = "", arrival: float = 0.0) -> None:
        self.pipeline = pipeline
        self.request = request
        self.arrival = arrival
        self.spans: list[Span] = []
        self.left_out = 0

    def add(self, span: Span) -> None:
        """A call begins."""
        if len(self.spans) < MOST_SPANS:
            self.spans.append(span)
        else:
            self.left_out += 1
