"""What came to one service, window by window: what was foreseen of each request, until it has ended and tells itself.

A request counts where it came, whatever became of it. Nothing here reads a clock: `at` is in seconds since the epoch.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from foreserve.foresight.workload import DAY_S, Series
from foreserve.scaling import Window

MOST_OPEN: Final = 65_536
"""Requests whose end may still correct a window; of those beyond, what was foreseen stays."""

LEAST_COVERED: Final = 0.5
"""A window of which less was seen is not known; of others the rest is taken to have been like what was seen."""

FADE: Final = 0.05
"""How much one request counts in what a request amounts to of late, which one is taken for of which nothing is told."""

RECENT_S: Final = 30.0
"""What is meant by of late, in parts of so many seconds; shorter where windows are."""
PARTS: Final = 10

REQUESTS: Final = "requests"


class Demand:
    """Windows of `window_s` seconds that begin at multiples of it, the newest `keep` of them.

    One is known when it was watched to its end, or for at least half of it. `before` are windows of an earlier time.
    """

    def __init__(
        self, window_s: float, at: float, keep: int, before: Sequence[Window] = (), day_s: float = DAY_S
    ) -> None:
        """Watch from `at` on. Of `before` those are left out that are of another length, later, or too long ago."""
        self.window_s = window_s
        self._day_s = day_s
        self._keep = keep
        self._since = self._began = at
        self._index = self._place(at)
        self._current: dict[str, float] = {}
        self._first = self._index
        self._columns: dict[str, array[float]] = {REQUESTS: array("d")}
        """By measure, from window `_first` to the one before `_index`; `nan` is not known."""
        self._open: OrderedDict[str, tuple[int, Mapping[str, float]]] = OrderedDict()
        self._each: dict[str, float] = {}
        self._changed: dict[int, None] = {}
        self._part_s = min(RECENT_S, window_s) / PARTS
        self._parts: deque[tuple[int, dict[str, float]]] = deque(maxlen=PARTS + 1)
        self._take_up(before)

    def _take_up(self, before: Sequence[Window]) -> None:
        known = {
            index: window.amounts
            for window in before
            if window.window_s == self.window_s
            and self._index - self._keep <= (index := round(window.at / self.window_s)) < self._index
        }
        if known:
            self._first = min(known)
            for index in range(self._first, self._index):
                self._append(known.get(index))

    # --- requests

    def came(self, request_id: str, amounts: Mapping[str, float], at: float) -> None:
        """One request, and what is foreseen of it by measure. What is not told is taken to be as of late."""
        self.advance(at)
        counted = {**self._each, **amounts, REQUESTS: 1.0}
        _add(self._current, counted)
        self._open[request_id] = self._index, counted
        while len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)
        part = int(at // self._part_s)
        if not self._parts or self._parts[-1][0] != part:
            self._parts.append((part, {}))
        _add(self._parts[-1][1], counted)

    def ended(self, request_id: str, truth: Mapping[str, float]) -> None:
        """It has ended. What it came to, as far as that is known, takes the place of what was foreseen, where it came.

        Unknown ids are ignored.
        """
        request = self._open.pop(request_id, None)
        if request is None:
            return
        index, counted = request
        for name, amount in truth.items():
            self._each[name] = self._each.get(name, amount) * (1.0 - FADE) + FADE * amount
        less = {name: amount - counted.get(name, 0.0) for name, amount in truth.items()}
        if index == self._index:
            _add(self._current, less)
        elif 0 <= index - self._first < len(self._columns[REQUESTS]):
            place = index - self._first
            if math.isfinite(self._columns[REQUESTS][place]):
                for name, amount in less.items():
                    column = self._column(name)
                    before = column[place] if math.isfinite(column[place]) else 0.0
                    column[place] = max(0.0, before + amount)
                self._changed[index] = None

    # --- time

    def advance(self, at: float) -> bool:
        """It is `at` now. Whether other windows are over than before.

        When the clock has leapt over windows they are not known. When it was set back by more than one, what was
        counted for later than that is forgotten.
        """
        index = self._place(at)
        if index == self._index or index == self._index - 1:
            return False
        if index < self._index:
            self._set_back(index, at)
            return True
        self._close((self._index + 1) * self.window_s)
        follows = index == self._index + 1
        if index - self._index > self._keep:  # nothing of all that is known is of use any more
            for column in self._columns.values():
                del column[:]
            self._first = index
        else:
            for _ in range(self._index + 1, index):
                self._append(None)
        self._index, self._current = index, {}
        self._since = index * self.window_s if follows else at
        if not follows:  # or what is of late would be taken for an idle time
            self._began = at
            self._parts.clear()
        return True

    def stop(self, at: float) -> None:
        """Nothing is watched any more. The window that runs is known where most of it was seen."""
        self.advance(at)
        self._close(at)
        self._index += 1
        self._current = {}

    def _set_back(self, index: int, at: float) -> None:
        for column in self._columns.values():
            del column[max(0, index - self._first) :]
        if index < self._first:
            self._first = index
        self._changed = {each: None for each in self._changed if each < index}
        self._open.clear()
        self._index, self._since, self._began, self._current = index, at, at, {}
        self._parts.clear()

    def _place(self, at: float) -> int:
        return math.floor(at / self.window_s)

    def _close(self, end: float) -> None:
        """The window that runs is over at `end`."""
        seen = (end - self._since) / self.window_s
        if seen < LEAST_COVERED:
            self._append(None)
            return
        scale = 1.0 / seen if seen < 0.999 else 1.0
        self._append({name: amount * scale for name, amount in self._current.items()})
        self._changed[self._index] = None

    def _append(self, amounts: Mapping[str, float] | None) -> None:
        """One more window; `None` is not known. Nor is a measure of which nothing is told though requests came."""
        for name in amounts or ():
            self._column(name)
        came = math.nan if amounts is None else amounts.get(REQUESTS, 0.0)
        for name, column in self._columns.items():
            column.append(_amount(came, None if amounts is None else amounts.get(name)))
        if (over := len(self._columns[REQUESTS]) - self._keep) > max(16, self._keep // 16):
            for column in self._columns.values():
                del column[:over]
            self._first += over

    def _column(self, name: str) -> array[float]:
        if name not in self._columns:
            self._columns[name] = array("d", (_amount(came, None) for came in self._columns[REQUESTS]))
        return self._columns[name]

    # --- what is told

    @property
    def known(self) -> int:
        """Windows that are known."""
        return int(np.isfinite(np.array(self._columns[REQUESTS])).sum())

    @property
    def index(self) -> int:
        """Of the window that runs."""
        return self._index

    def series(self) -> dict[str, Series]:
        """By measure, from the first window that is known to the last that is over; none where none is known."""
        found = {}
        for name in sorted(self._columns):
            values = np.array(self._columns[name])[-self._keep :]
            known = np.flatnonzero(np.isfinite(values))
            if len(known):
                first = self._first + len(self._columns[name]) - len(values) + int(known[0])
                found[name] = Series(first, self.window_s, values[known[0] :], self._day_s)
        return found

    def changed(self) -> list[Window]:
        """Windows that are over or were corrected since this was last asked, oldest first."""
        found = []
        for index in sorted(self._changed):
            if 0 <= (place := index - self._first) < len(self._columns[REQUESTS]):
                amounts = {
                    name: column[place] for name, column in self._columns.items() if math.isfinite(column[place])
                }
                found.append(Window(at=index * self.window_s, window_s=self.window_s, amounts=amounts))
        self._changed.clear()
        return found

    def recent(self, at: float) -> dict[str, float]:
        """What came in each second of late, also before a window is over."""
        span_s = min(self._part_s * PARTS, max(at - self._began, self._part_s))
        found = {REQUESTS: 0.0, **dict.fromkeys(self._each, 0.0)}
        for part, amounts in self._parts:
            begin = part * self._part_s
            # Of the oldest part only the end is of late; but all of it, where nobody had watched before.
            within = (begin + self._part_s - max(at - span_s, begin)) / self._part_s if begin <= at else 0.0
            if within > 0.0 and at - span_s <= self._began:
                within = 1.0
            if within > 0.0:
                _add(found, {name: within * amount for name, amount in amounts.items()})
        return {name: amount / span_s for name, amount in found.items()}


def _amount(came: float, amount: float | None) -> float:
    """Of one measure, in a window in which so many requests came; `nan` is not known."""
    if amount is None or math.isnan(came):
        return 0.0 if came == 0.0 else math.nan
    return max(0.0, amount)


def _add(amounts: dict[str, float], more: Mapping[str, float]) -> None:
    for name, amount in more.items():
        amounts[name] = max(0.0, amounts.get(name, 0.0) + amount)
