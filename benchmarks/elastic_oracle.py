"""More than this nobody can get who knows the future: the worth of a load where passes may be cut up at will.

Time is cut into slots, and each has a price. A request takes the cheapest slot that it can still use, between its
arrival and its deadline, and the setting that leaves most of its worth when its share of a pass is paid at that price;
a pass is of the size at which a share is least. By duality, what all have left and what all slots cost are together no
less than what any way to serve is worth, whatever the prices are. The least that is found by trying prices is told.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.elastic_play import Plans, Query
from foreserve.elastic.profile import Profile, interpolated

SLOTS = 1024
"""Powers of two, as are the blocks of slots whose price is tried."""

FACTORS = (0.5, 0.8, 1.25)

Floats = NDArray[np.float64]


class Bound:
    """What no way to serve these queries can exceed, on passes of the profile's lengths."""

    def __init__(self, profile: Profile, queries: Sequence[Query], plans: Plans, size: int) -> None:
        settings = [*dict.fromkeys(each for allowed in plans.values() for each in allowed)]
        sizes = range(1, size + 1)
        every = [[interpolated(profile, profile.seconds[each], n, 1) / n for n in sizes] for each in settings]
        self._share = np.array(every).min(axis=1)
        # What a task does not allow is worth nothing to it.
        accuracy = {task: [allowed.get(each, 0.0) for each in settings] for task, allowed in plans.items()}
        utility = np.array([query.utility for query in queries])
        self._worth = utility[:, None] * np.array([accuracy[query.task] for query in queries])
        at = np.array([query.at for query in queries])
        due = at + np.array([query.has_s for query in queries])
        start = float(at.min())
        self._width = float(due.max() - start) / SLOTS * (1 + 1e-9)
        # Of a slot that it touches a request may use all, which only adds to what could be had.
        self._first = ((at - start) / self._width).astype(int)
        self._last = ((due - start) / self._width).astype(int)
        self._level = np.floor(np.log2(self._last - self._first + 1)).astype(int)

    def lowest(self, finest: int = 64) -> float:
        """By one price for all, then by prices of ever smaller blocks, down to a `finest` part of the time."""
        most = float((self._worth.max(axis=0) / self._share).max())
        prices = min((np.full(SLOTS, each) for each in np.linspace(0.0, most, 40)), key=self.told)
        best = self.told(prices)
        blocks = 2
        while blocks <= finest:
            width = SLOTS // blocks
            for block in range(blocks):
                for factor in FACTORS:
                    tried = prices.copy()
                    tried[block * width : (block + 1) * width] *= factor
                    if (found := self.told(tried)) < best:
                        best, prices = found, tried
            blocks *= 2
        return best

    def told(self, prices: Floats) -> float:
        """The bound by these prices, `[SLOTS]`, each for a second."""
        left = self._worth - self._cheapest(prices)[:, None] * self._share
        return float(left.max(axis=1).clip(min=0.0).sum() + prices.sum() * self._width)

    def _cheapest(self, prices: Floats) -> Floats:
        """Of the slots that each may use: the lower of two ranges of a power of two that cover them."""
        found = np.empty(len(self._first))
        table = prices
        for level in range(int(self._level.max()) + 1):
            rows = np.flatnonzero(self._level == level)
            found[rows] = np.minimum(table[self._first[rows]], table[self._last[rows] - (1 << level) + 1])
            if 1 << level < len(table):
                table = np.minimum(table[: -(1 << level)], table[1 << level :])
        return found
