"""How much room beyond its forecasts a service needs, learned from how often requests had to wait all the same.

Some loads rise by half within an hour and some double within a minute, which no forecast tells and no start is quick
enough for: only replicas that are there already help then. How many of them are worth it a service's own past tells.
"""

from __future__ import annotations

from typing import Final

from foreserve.fleet.autoscaler_need import whole
from foreserve.scaling import ScalingView

RAISE: Final = 0.25
"""Of what is foreseen to be needed: so much more from an episode of waiting on."""

MOST: Final = 2.5
"""Times the need; beyond that waiting is cheaper than what would prevent it."""

WINDOW_S: Final = 60.0
"""Where nothing is foreseen, and so no window is told."""


class Headroom:
    """A factor for what is foreseen to be needed, from 1 up. Pure but for its memory: `look` is called at every tick.

    It is raised when requests have come to wait for more than `wait_s`, once for each episode, and falls back by as
    much in `seldom` windows without: in the long run there is about one episode in so many windows. An episode is
    over when nothing has waited for a window. `None`: it stays 1. Where even `MOST` times what is foreseen would have
    been no more replicas than were ready, a burst that nothing foretold, more headroom is no help and it stays as well.
    """

    def __init__(self, wait_s: float, seldom: float | None) -> None:
        self.factor = 1.0
        self._wait_s = wait_s
        self._seldom = seldom
        self._last = 0.0
        self._waited_at: float | None = None

    def look(self, view: ScalingView, now: float, needed: float | None = None) -> None:
        """So it stands now, and so many replicas (without headroom) are foreseen to be needed; `None`: not known."""
        elapsed, self._last = max(now - self._last, 0.0), now
        if self._seldom is None:
            return
        window_s = WINDOW_S if view.forecast is None else view.forecast.window_s
        if view.waiting.count and view.waiting.oldest_s > self._wait_s:
            # Where there was no replica to wait for, more room would have been of no use.
            ready = sum(replica.phase == "ready" for replica in view.replicas)
            helps = ready > 0 and (needed is None or whole(MOST * needed) > ready)
            if self._waited_at is None and helps:
                self.factor = min(MOST, self.factor + RAISE)
            self._waited_at = now
        elif self._waited_at is not None and now - self._waited_at > window_s:
            self._waited_at = None
        self.factor = max(1.0, self.factor - RAISE * min(elapsed, window_s) / (window_s * self._seldom))
