"""How long will a request be on a replica? Learned on line for engines that batch continuously.

Source: Magnus (arXiv 2406.04785), carried over to continuous batching: service time = prefill of the prompt + output
tokens times the time for each, here `a + b * input tokens + c * output tokens`, under a load like that of late.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

BASE_S: Final = 0.05
INPUT_S: Final = 0.0005
OUTPUT_S: Final = 0.03
"""What is taken until something has ended: seconds, seconds for each input token, seconds for each output token."""

FORGET: Final = 0.995
"""How much one outcome's weight fades with the next: the last 200 count most, so that load of late is what is seen."""

UNSURE: Final = 10_000.0
"""Variance of the first guess, relative to its square and to that of one outcome: the first few outcomes replace it."""

RECENT: Final = 256
"""Paces kept for the least time."""

LEAST_QUANTILE: Final = 0.05
LEAST_GROWS: Final = 1.01
REFRESH: Final = 16
"""The least pace is looked for again every so many outcomes. It may fall at once and grow by so much at a time: a load
that lasts is not what a request takes at the least."""

FEW: Final = 20
"""With fewer paces than this nothing is said to be the least: no deadline is given up for a guess."""

MOST_SURPRISE: Final = 4.0
"""So many times what was expected an outcome may take before it counts less: as behind a stall."""

_GUESS: Final = (BASE_S, 100.0 * INPUT_S, 100.0 * OUTPUT_S)
"""Seconds, seconds for 100 tokens: so that the features are of like size."""

_FIRST: Final = tuple(1.0 / (guess * guess * UNSURE) for guess in _GUESS)
"""How sure the first guess is of itself: a diagonal. It never fades."""

_MOST_TOKENS: Final = 10_000_000
_MOST_S: Final = 86_400.0


class PaceState(msgspec.Struct, frozen=True, kw_only=True):
    """What has been learned, as plain numbers that survive a restart."""

    known: list[float]
    sums: list[float]
    seen: int
    paces: list[float]
    least: float | None = None


class RequestTime:
    """Expected seconds on a replica from what a request reads and writes.

    Recursive least squares in information form with weights that fade: features that never vary stay at the first
    guess in place of drifting. Each outcome counts relative to its own expected time, so that long requests do not
    drown short ones. Coefficients are at 0 or above. Not thread-safe.
    """

    def __init__(self) -> None:
        self.seen = 0
        """Outcomes learned from."""
        self._known = [0.0] * 6
        """The upper half of a symmetric matrix, row by row; three numbers a side are too few for arrays to be quick."""
        self._sums = [0.0] * 3
        self._theta: tuple[float, float, float] | None = _GUESS
        self._paces: deque[float] = deque(maxlen=RECENT)
        self._least: float | None = None

    def seconds(self, input_tokens: float, output_tokens: float) -> float:
        """The expected time for so many tokens; above 0."""
        a, b, c = self._coefficients()
        return max(1e-6, a + b * input_tokens / 100.0 + c * output_tokens / 100.0)

    def least_seconds(self, output_tokens: float) -> float:
        """What so many output tokens take on a replica with little else to do, as far as recent ones show; else 0.

        The prompt is left out: it may be cached. Never above what is expected.
        """
        if self._least is None:
            return 0.0
        return min(self._least * output_tokens, self.seconds(0.0, output_tokens))

    def learn(self, input_tokens: int, output_tokens: int, seconds: float) -> None:
        """A request that read and wrote so many tokens was on its replica for `seconds`. Odd figures are ignored."""
        usual = 0 <= input_tokens <= _MOST_TOKENS and 1 <= output_tokens <= _MOST_TOKENS and 0.0 < seconds <= _MOST_S
        if not usual:
            return
        self._paces.append(seconds / output_tokens)
        self.seen += 1
        if len(self._paces) >= FEW and (self._least is None or self.seen % REFRESH == 0):
            quantile = _quantile(sorted(self._paces), LEAST_QUANTILE)
            self._least = quantile if self._least is None else min(quantile, self._least * LEAST_GROWS)
        weight = 1.0 / max(self.seconds(input_tokens, output_tokens), seconds / MOST_SURPRISE, 1e-4)
        x, y, z = weight, input_tokens / 100.0 * weight, output_tokens / 100.0 * weight
        now = seconds * weight
        aa, ab, ac, bb, bc, cc = self._known
        self._known = [
            FORGET * aa + x * x,
            FORGET * ab + x * y,
            FORGET * ac + x * z,
            FORGET * bb + y * y,
            FORGET * bc + y * z,
            FORGET * cc + z * z,
        ]
        a, b, c = self._sums
        self._sums = [FORGET * a + x * now, FORGET * b + y * now, FORGET * c + z * now]
        self._theta = None

    def _coefficients(self) -> tuple[float, float, float]:
        """The best ones at 0 or above: the most negative is put to 0 and the others are found again."""
        if self._theta is None:
            aa, ab, ac, bb, bc, cc = self._known
            sums = [known + first * guess for known, first, guess in zip(self._sums, _FIRST, _GUESS, strict=True)]
            sides = [aa + _FIRST[0], bb + _FIRST[1], cc + _FIRST[2]]
            free = [0, 1, 2]
            while True:
                theta = _solved(sides, ab, ac, bc, sums)
                lowest = min(free, key=lambda place: theta[place])
                if theta[lowest] >= 0.0 or len(free) == 1:
                    break
                free.remove(lowest)
                # Its row now says that it is 0.
                sides[lowest], sums[lowest] = 1.0, 0.0
                if lowest == 0:
                    ab = ac = 0.0
                elif lowest == 1:
                    ab = bc = 0.0
                else:
                    ac = bc = 0.0
            a, b, c = theta
            self._theta = max(a, 0.0), max(b, 0.0), max(c, 0.0)
        return self._theta

    # --- over a restart

    def state(self) -> PaceState:
        """What `restored` takes."""
        aa, ab, ac, bb, bc, cc = self._known
        return PaceState(
            known=[aa, ab, ac, ab, bb, bc, ac, bc, cc],
            sums=list(self._sums),
            seen=self.seen,
            paces=list(self._paces),
            least=self._least,
        )

    @classmethod
    def restored(cls, state: PaceState) -> RequestTime:
        """As it was; a fresh one when `state` is not sound."""
        made = cls()
        known, sums = state.known, state.sums
        if len(known) == 9 and len(sums) == 3 and all(map(math.isfinite, (*known, *sums))):
            made._known, made._sums, made._theta = [*known[:3], *known[4:6], known[8]], list(sums), None
            made.seen = max(0, state.seen)
            made._paces.extend(state.paces[-RECENT:])
            made._least = state.least
        return made


def _solved(
    sides: Sequence[float], ab: float, ac: float, bc: float, sums: Sequence[float]
) -> tuple[float, float, float]:
    """What solves a symmetric, positive definite system: its diagonal, what is beside that, and its right side."""
    aa, bb, cc = sides
    p, q, r = sums
    by_a, by_a_too = ab / aa, ac / aa
    # Above 0 but for rounding, where all that was seen is alike.
    bb_left = max(bb - by_a * ab, 1e-15 * bb)
    bc_left = bc - by_a * ac
    by_b = bc_left / bb_left
    cc_left = max(cc - by_a_too * ac - by_b * bc_left, 1e-15 * cc)
    q_left = q - by_a * p
    c = (r - by_a_too * p - by_b * q_left) / cc_left
    b = (q_left - bc_left * c) / bb_left
    return (p - ab * b - ac * c) / aa, b, c


def _quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values, on the line between the two that it falls between."""
    at = share * (len(values) - 1)
    low = int(at)
    return values[low] + (values[min(low + 1, len(values) - 1)] - values[low]) * (at - low)
