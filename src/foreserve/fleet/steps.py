"""How fast a replica goes, as seen from outside: the length of its steps, and how long it takes to read prompts."""

from __future__ import annotations

from typing import Final

WEIGHT: Final = 0.2
"""Of the newest heartbeat, in the moving rate of steps."""

FORGET: Final = 0.98
"""How much one reading of prompts fades with the next."""

MOST_SURPRISE: Final = 4.0
"""So many times what was expected a reading may take before the rest is put down to something else."""


class StepClock:
    """Counts the steps that a replica has taken from the time that passed and the length of its recent steps.

    While no step's length is known nothing passes; the time is made up for once one is.
    """

    def __init__(self) -> None:
        self.step_s: float | None = None
        """The length of a step of late, in seconds."""
        self._steps_per_s: float | None = None
        self._since = 0.0
        self._fraction = 0.0

    def heard(self, last_step_s: float | None) -> None:
        """How long the newest step took, in seconds, by a heartbeat or an answer's pace; `None` is not known."""
        if last_step_s is None or last_step_s <= 0:
            return
        # Rates are averaged, not lengths: a heartbeat finds a long step more often than a short one, in proportion.
        rate = 1.0 / last_step_s
        self._steps_per_s = (
            rate if self._steps_per_s is None else self._steps_per_s + WEIGHT * (rate - self._steps_per_s)
        )
        self.step_s = 1.0 / self._steps_per_s

    def begin(self, now: float) -> None:
        """The replica had nothing to do until now."""
        self._since, self._fraction = now, 0.0

    def passed(self, now: float) -> int:
        """Whole steps since the last call; what is left of one is carried over."""
        if self._steps_per_s is None or now <= self._since:
            return 0
        steps = self._fraction + (now - self._since) * self._steps_per_s
        whole = int(steps)
        self._since = now
        self._fraction = steps - whole
        return whole


class PromptPace:
    """Seconds for each token of prompts, learned from how long first tokens take: least squares that fade.

    What a reading takes whatever its length (the step that runs when it comes) is a part of its own, so that short
    prompts do not make long ones look slow.
    """

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self.token_s: float | None = None
        """`None` while nothing has been read."""

    def _fitted(self) -> float:
        whole = self._y / self._x
        spread = self._xx - self._x * self._x / self._n
        if spread <= 0.05 * self._x * self._x / self._n:
            return whole
        slope = (self._xy - self._x * self._y / self._n) / spread
        return min(max(slope, 0.1 * whole), whole)

    def read(self, tokens: int, seconds: float) -> None:
        """So many tokens of prompts took so long, from when the first of them could begin."""
        if tokens < 1 or seconds <= 0.0:
            return
        if self._x > 0.0:
            seconds = min(seconds, MOST_SURPRISE * max(self._y / self._n, tokens * self._y / self._x))
        self._n = FORGET * self._n + 1.0
        self._x = FORGET * self._x + tokens
        self._y = FORGET * self._y + seconds
        self._xx = FORGET * self._xx + tokens * tokens
        self._xy = FORGET * self._xy + tokens * seconds
        self.token_s = self._fitted()
