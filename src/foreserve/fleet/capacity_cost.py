"""What a request costs by how large it is, learned from the time that each has taken: so that mixes can be compared.

Requests of one service differ a thousandfold in size, and their mix from one minute to the next. What a replica was
seen to do of one mix tells what it can do of another by the ratio of what their requests cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

MOST_MEASURES: Final = 8
FADE: Final = 0.999
"""Of each sum, with every request: the last thousand or so count."""

FEW: Final = 30
TOGETHER: Final = 64

PRIOR: Final = 3.0
"""What each measure's equal share counts for, in requests, against what is seen."""


class CostState(msgspec.Struct, frozen=True, kw_only=True):
    """What has been learned, for `RequestCost.restored`: sums of squares, of products with the time, and of amounts."""

    names: list[str]
    squares: list[list[float]]
    took: list[float]
    sums: list[float]
    seconds: float


class RequestCost:
    """Seconds on a replica as a sum over measures, each by its amount, and a part that is the same for all.

    Pure but for its memory. Least squares over past requests, drawn towards equal shares of all; none falls below 0.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._squares: NDArray[np.float64] = np.zeros((1, 1))
        self._took: NDArray[np.float64] = np.zeros(1)
        self._sums: NDArray[np.float64] = np.zeros(1)
        self._seconds = 0.0
        self._weights: NDArray[np.float64] | None = None
        self._new: list[tuple[dict[str, float], float]] = []
        """Those that the sums do not have yet: they are taken in together, for one at a time costs much more."""

    def ended(self, amounts: Mapping[str, float], seconds: float) -> None:
        """A request of this size took so long."""
        self._new.append((dict(amounts), seconds))
        if len(self._new) >= TOGETHER:
            self._take_in()

    def _take_in(self) -> None:
        for amounts, _ in self._new:
            for name in amounts:
                if name not in self._names and len(self._names) < MOST_MEASURES:
                    self._names.append(name)
                    self._squares = np.pad(self._squares, ((0, 1), (0, 1)))
                    self._took, self._sums = np.pad(self._took, (0, 1)), np.pad(self._sums, (0, 1))
        rows = np.array([[1.0, *(amounts.get(name, 0.0) for name in self._names)] for amounts, _ in self._new])
        took = np.array([seconds for _, seconds in self._new])
        self._new.clear()
        sound = np.isfinite(rows).all(axis=1) & np.isfinite(took)
        rows, took = rows[sound], took[sound]
        if not len(rows):
            return
        before = FADE ** len(rows)
        weights = FADE ** np.arange(len(rows) - 1, -1, -1.0)
        weighed = rows * weights[:, None]
        self._squares = self._squares * before + weighed.T @ rows
        self._took = self._took * before + took @ weighed
        self._sums = self._sums * before + weighed.sum(axis=0)
        self._seconds = self._seconds * before + float(took @ weights)
        self._weights = None

    def of(self, amounts: Mapping[str, float]) -> float | None:
        """Of one request of this size; `None` while too little is known, or of a measure that no request has had."""
        if self._new:
            self._take_in()
        if self._sums[0] < FEW or not any(amounts.get(name, 0.0) > 0 for name in self._names):
            return None
        if self._weights is None:
            self._weights = self._fitted()
        row = np.array([1.0, *(amounts.get(name, 0.0) for name in self._names)])
        cost = float(row @ self._weights)
        return cost if cost > 0 else None

    def state(self) -> CostState:
        """What `restored` takes."""
        if self._new:
            self._take_in()
        return CostState(
            names=list(self._names),
            squares=self._squares.tolist(),
            took=self._took.tolist(),
            sums=self._sums.tolist(),
            seconds=self._seconds,
        )

    @classmethod
    def restored(cls, state: CostState) -> RequestCost:
        """As it was; what is not sound is forgotten."""
        made, size = cls(), len(state.names) + 1
        sound = len(state.squares) == len(state.took) == len(state.sums) == size <= MOST_MEASURES + 1
        numbers = [*state.took, *state.sums, state.seconds, *(each for row in state.squares for each in row)]
        if sound and all(len(row) == size for row in state.squares) and all(0 <= each < math.inf for each in numbers):
            made._names, made._seconds = list(state.names), state.seconds
            made._squares, made._took = np.array(state.squares), np.array(state.took)
            made._sums = np.array(state.sums)
        return made

    def _fitted(self) -> NDArray[np.float64]:
        """In units of the mean of each measure; what would fall below 0 is left out, one after the other."""
        count = self._sums[0]
        means = np.maximum(self._sums / count, 1e-9)
        squares = self._squares / np.outer(means, means)
        took = self._took / means
        fair = self._seconds / count / len(means)
        squares = squares + PRIOR * np.eye(len(means))
        took = took + PRIOR * fair
        inside = np.ones(len(means), dtype=bool)
        found: NDArray[np.float64] = np.zeros(len(means))
        while inside.any():
            places = np.flatnonzero(inside)
            found = np.zeros(len(means))
            found[places] = np.linalg.solve(squares[np.ix_(places, places)], took[places])
            worst = int(np.argmin(found))
            if found[worst] >= 0.0:
                break
            inside[worst] = False
        weights: NDArray[np.float64] = found / means
        return weights
