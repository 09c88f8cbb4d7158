"""What has come to a service, by windows of time: the series that its load is forecast from.

A request counts where it came, whatever became of it. How long its answer is nobody knows then: it counts as foreseen
until it has ended, and as it was from then on.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Final

from foreserve.scaling import Window

MOST_OPEN: Final = 65_536
"""Requests whose ends are waited for; of the oldest beyond them what was foreseen stays."""

RECENT_S: Final = 30.0
"""What is meant by of late."""
_PARTS: Final = 10
"""Of that time, which is counted in so many parts."""


class Demand:
    """Of one service. `at` is always in seconds since the epoch; calls come in order of time, more or less.

    Windows begin at multiples of `window_s`. It keeps the last `keep` of them; nothing is known from before `since`,
    and nothing is a window of which only a part is known.
    """

    def __init__(self, window_s: float, since: float, keep: int) -> None:
        self.window_s = window_s
        self._keep = keep
        self._since = since
        self._sums: OrderedDict[int, dict[str, float]] = OrderedDict()
        self._open: OrderedDict[str, tuple[int, Mapping[str, float]]] = OrderedDict()
        self._changed: dict[int, None] = {}
        self._told = self._index(since) + (1 if since > self._index(since) * window_s else 0)
        """The first window that has not been told; that which we came into the middle of never is."""
        self._first = self._told
        self._part_s = min(RECENT_S, window_s) / _PARTS
        self._parts: deque[tuple[int, dict[str, float]]] = deque(maxlen=_PARTS + 1)
        self._each: dict[str, float] = {}
        """The amounts of a request, on average of late."""

    def came(self, request_id: str, at: float, amounts: Mapping[str, float]) -> None:
        """A request has come, and so much is foreseen of it. What is not told is taken to be as of late."""
        amounts = {**self._each, **amounts}
        self._each = {name: self._each.get(name, amount) * 0.95 + 0.05 * amount for name, amount in amounts.items()}
        index = self._index(at)
        _add(self._sum(index), amounts)
        self._open[request_id] = index, amounts
        while len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)
        part = int(at // self._part_s)
        if not self._parts or self._parts[-1][0] < part:
            self._parts.append((part, {}))
        _add(self._parts[-1][1], amounts)

    def ended(self, request_id: str, amounts: Mapping[str, float]) -> None:
        """It has ended and these were its true amounts, as far as they are known. Unknown ids are ignored."""
        known = self._open.pop(request_id, None)
        if known is None or not amounts:
            return
        index, foreseen = known
        self._each.update(
            (name, self._each.get(name, amount) * 0.95 + 0.05 * amount) for name, amount in amounts.items()
        )
        if (sums := self._sums.get(index)) is not None:
            _add(sums, {name: amount - foreseen.get(name, 0.0) for name, amount in amounts.items()})
            if index < self._told:
                self._changed[index] = None

    def told(self, at: float) -> list[Window]:
        """Windows that are over, each once, oldest first; before them those already told that are another now.

        A window in which nothing came has no amount.
        """
        until = self._index(at)
        if until - self._told > self._keep:  # the clock was set, or we were asleep: nothing is known of that time
            self._told = until
        fresh = range(self._told, max(until, self._told))
        found = [self._window(index) for index in (*sorted(self._changed), *fresh)]
        self._changed.clear()
        self._told = max(until, self._told)
        while self._sums and next(iter(self._sums)) < self._told - self._keep:
            self._sums.popitem(last=False)
        return found

    def recent(self, at: float) -> dict[str, float]:
        """What came in each second of late, also before a first window is over."""
        span_s = min(self._part_s * _PARTS, max(at - self._since, self._part_s))
        oldest = int((at - span_s) // self._part_s)
        found = dict.fromkeys(self._each, 0.0)
        for part, amounts in self._parts:
            if part > oldest or span_s < self._part_s * _PARTS:
                _add(found, amounts)
        return {name: max(0.0, amount) / span_s for name, amount in found.items()}

    def _index(self, at: float) -> int:
        return int(at // self.window_s)

    def _sum(self, index: int) -> dict[str, float]:
        if index not in self._sums:
            self._sums[index] = {}
        return self._sums[index]

    def _window(self, index: int) -> Window:
        sums = self._sums.get(index, {})
        amounts = {name: max(0.0, amount) for name, amount in sums.items()}
        return Window(at=index * self.window_s, window_s=self.window_s, amounts=amounts)


def _add(sums: dict[str, float], amounts: Mapping[str, float]) -> None:
    for name, amount in amounts.items():
        sums[name] = sums.get(name, 0.0) + amount
