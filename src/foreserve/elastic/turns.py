"""Turns of those without a deadline: who has waited beyond patience is worth little, but is not left for ever.

Under lasting overload something is always worth more than what is overdue. So while any is overdue, one pass of every
`EVERY` is theirs: of those that have waited longest, as many as one pass takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from foreserve.core import Work

EVERY = 8
"""Of so many passes one; the others lose an eighth of their time at the most."""


class Turns:
    """Counts passes, and says whose the next is. `due` tells when a request should be done, in loop seconds."""

    def __init__(self, due: Callable[[Work], float]) -> None:
        self._due = due
        self._since = 0

    def overdue(self, work: Work, now: float) -> bool:
        """Whether it has no deadline and has waited longer than patience."""
        return work.deadline is None and self._due(work) < now

    def passed(self, works: Iterable[Work], now: float) -> None:
        """A pass begins with these."""
        self._since = 0 if any(self.overdue(work, now) for work in works) else self._since + 1

    def theirs(self, waiting: Iterable[Work], now: float) -> list[Work]:
        """Those that are overdue, who came first being first, if the next pass is theirs; else none."""
        if self._since + 1 < EVERY:
            return []
        return sorted((work for work in waiting if self.overdue(work, now)), key=lambda work: work.arrival)
