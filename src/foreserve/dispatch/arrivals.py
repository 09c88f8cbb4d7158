"""How soon does another request come, while so many are here? Learned by their number.

Of clients that send the next request when they have the answer to the last, one that waits alone waits for nobody: none
comes while it is here. A mean time between arrivals would not tell, since its own next request comes quickly too.
"""

from __future__ import annotations

KEEP = 0.95
"""Of what was seen before, at each stay in a state: about its last twenty stays count."""

MOST_STATES = 256
"""More requests at once than this are one state."""

DOUBT = 0.25
"""Arrivals that the expectation stands for which a state has of all states, and all states have of the start."""


class _Seen:
    """Seconds, and arrivals within them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.arrivals = 0.0

    def take(self, seconds: float, arrivals: int) -> None:
        self.seconds = KEEP * self.seconds + seconds
        self.arrivals = KEEP * self.arrivals + arrivals

    def gap(self, expected: float) -> float:
        return (self.seconds + DOUBT * expected) / (self.arrivals + DOUBT)


class Arrivals:
    """Counts who is here, waiting or running. `expected_s` is what is expected before anything has been seen."""

    def __init__(self, expected_s: float) -> None:
        self._expected_s = expected_s
        self._here = 0
        self._since = 0.0
        self._states: dict[int, _Seen] = {}
        self._all = _Seen()

    def came(self, now: float) -> None:
        """One more is here."""
        self._stayed(now, 1)
        self._here += 1

    def left(self, now: float) -> None:
        """One is here no more."""
        self._stayed(now, 0)
        self._here = max(0, self._here - 1)

    def _stayed(self, now: float, arrivals: int) -> None:
        seconds = max(0.0, now - self._since)
        self._since = max(now, self._since)
        if self._here and (seconds or arrivals):  # an empty house tells of the clients' own pauses
            self._states.setdefault(min(self._here, MOST_STATES), _Seen()).take(seconds, arrivals)
            self._all.take(seconds, arrivals)

    @property
    def since(self) -> float:
        """When one last came or left."""
        return self._since

    def gap(self) -> float:
        """Seconds from `since` to the next arrival, as is expected with as many here as now."""
        pooled = self._all.gap(self._expected_s)
        state = self._states.get(min(self._here, MOST_STATES))
        return pooled if state is None else state.gap(pooled)
