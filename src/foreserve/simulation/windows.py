"""What happened when: a run in at most so many windows of time, which grow as it gets longer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from foreserve.core import OutcomeKind
from foreserve.simulation.histogram import Histogram

MOST: Final = 600

WIDTHS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
"""Seconds that people can read off an axis."""


class Window:
    """One service in one span of time. Arrivals, their needs and their latencies stand where they came; ends where they
    ended; the rest are integrals over time: replicas, those that are ready or busy, their slots and those in use are
    exact, `waiting_s` and `kv_s` of what looks found, over the `looked_s` and `kv_ready_s` that these stand for. The
    replicas that scaling wanted are over `decided_s`, what it foresaw to be needed over `foreseen_s`.
    """

    __slots__ = (
        "arrived", "busy_s", "decided_s", "e2e", "ended", "foreseen_need_s", "foreseen_s", "held_s", "input_tokens",
        "kv_ready_s", "kv_s", "looked_s", "most_waiting", "need_s", "output_tokens", "ready_s", "replica_s", "slot_s",
        "tokens", "ttft", "waiting_s", "wanted_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.arrived = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.need_s = 0.0
        self.ttft = Histogram()
        self.e2e = Histogram()
        self.ended: dict[OutcomeKind, int] = dict.fromkeys(OutcomeKind, 0)
        self.tokens = 0
        self.most_waiting = 0
        self.replica_s = 0.0
        self.ready_s = 0.0
        self.busy_s = 0.0
        self.held_s = 0.0
        self.slot_s = 0.0
        self.looked_s = 0.0
        self.waiting_s = 0.0
        self.kv_s = 0.0
        self.kv_ready_s = 0.0
        self.decided_s = 0.0
        self.wanted_s = 0.0
        self.foreseen_s = 0.0
        self.foreseen_need_s = 0.0

    def merge(self, other: Window) -> None:
        """Take in the window that follows."""
        self.ttft.merge(other.ttft)
        self.e2e.merge(other.e2e)
        for kind, count in other.ended.items():
            self.ended[kind] += count
        self.most_waiting = max(self.most_waiting, other.most_waiting)
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_SUMS: Final = tuple(name for name in Window.__slots__ if name not in ("ttft", "e2e", "ended", "most_waiting"))


class Windows:
    """The windows of one service, from second 0 on."""

    def __init__(self, width_s: float = 1.0, most: int = MOST) -> None:
        self.width_s = width_s
        self._most = most
        self._windows: list[Window] = []

    def at(self, time: float) -> Window:
        """The window of this time (seconds from the start, not below 0). Two become one when there are too many."""
        index = int(time / self.width_s)
        while index >= self._most:
            self._coarsen()
            index = int(time / self.width_s)
        while len(self._windows) <= index:
            self._windows.append(Window())
        return self._windows[index]

    def during(self, begin: float, end: float) -> Iterator[tuple[Window, float]]:
        """The windows of a span of time, each with how many seconds of it are its own."""
        if end <= begin:
            return
        last = self.at(end)  # before all else: it may coarsen
        index, until = int(begin / self.width_s), int(end / self.width_s)
        if index == until:
            yield last, end - begin
            return
        while index <= until:
            own_s = min(end, (index + 1) * self.width_s) - max(begin, index * self.width_s)
            if own_s > 0.0:
                yield self._windows[index], own_s
            index += 1

    def _coarsen(self) -> None:
        pairs = self._windows
        for left, right in zip(pairs[::2], pairs[1::2], strict=False):
            left.merge(right)
        self._windows = pairs[::2]
        self.width_s *= 2

    def widen(self, width_s: float) -> None:
        """Up to this width, which is its own times a power of two."""
        while self.width_s < width_s:
            self._coarsen()

    def __iter__(self) -> Iterator[Window]:
        return iter(self._windows)

    def __len__(self) -> int:
        return len(self._windows)


def width_for(span_s: float, rows: int) -> float:
    """A width that gives a trace windows enough to see its course, and requests enough in each to tell a p99."""
    windows = min(max(rows / 40, 60), 240)
    return next((float(width) for width in WIDTHS if width * windows * 1.02 >= span_s), span_s / windows)
